# What `cmake --install` brings along: the library, its headers, and find_package(talent).
include(CMakePackageConfigHelpers)

set(package lib/cmake/talent)
install(TARGETS talent EXPORT talentTargets LIBRARY DESTINATION lib ARCHIVE DESTINATION lib
        INCLUDES DESTINATION include)
install(DIRECTORY include/talent DESTINATION include)
install(EXPORT talentTargets NAMESPACE talent:: DESTINATION ${package})

list(JOIN TALENT_DEPENDENCIES "\" \"" TALENT_DEPENDENCIES)
set(TALENT_DEPENDENCIES "\"${TALENT_DEPENDENCIES}\"")
get_target_property(type talent TYPE)
string(COMPARE EQUAL ${type} SHARED_LIBRARY TALENT_SHARED)
configure_package_config_file(cmake/talentConfig.cmake.in talentConfig.cmake INSTALL_DESTINATION ${package})
write_basic_package_version_file(talentConfigVersion.cmake VERSION ${TALENT_VERSION} COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/talentConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/talentConfigVersion.cmake
              cmake/FindOnnxRuntime.cmake DESTINATION ${package})
