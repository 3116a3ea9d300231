# The TensorRT plugin with the kernels inside, where TensorRT's headers are.
find_package(TensorRTHeaders MODULE)
if(NOT TensorRTHeaders_FOUND)
  message(STATUS "No TensorRT plugin: ${TensorRTHeaders_PROBLEM}")
  return()
endif()
message(STATUS "TensorRT plugin for: ${TensorRTHeaders_VERSION} (${TensorRTHeaders_INCLUDE_DIR})")

set(exports ${CMAKE_CURRENT_SOURCE_DIR}/plugin_exports.map)
add_library(talent_plugin MODULE plugin_exports.cpp plugin_log.cpp rca_fields.cpp rca_plugin.cpp)
target_link_libraries(talent_plugin PRIVATE rca_kernels TensorRT::headers)
# no-undefined: what is missing here would be looked for in whatever TensorRT is in the process
target_link_options(talent_plugin PRIVATE "LINKER:--version-script=${exports}" LINKER:--no-undefined)
set_target_properties(talent_plugin PROPERTIES LINK_DEPENDS ${exports})

# A library that calls itself libtensorrt_rtx.so and needs libtensorrt_rtx.so.1, for C++ programs: see plugin_loader.h.
# The one that it is linked to here is empty and only lends its name.
file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/nothing.cpp "")
add_library(rtx_to_link SHARED ${CMAKE_CURRENT_BINARY_DIR}/nothing.cpp)
set_target_properties(rtx_to_link PROPERTIES OUTPUT_NAME tensorrt_rtx SOVERSION 1
                                             LIBRARY_OUTPUT_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/to_link)
add_library(talent_rtx_name SHARED ${CMAKE_CURRENT_BINARY_DIR}/nothing.cpp)
set_target_properties(talent_rtx_name PROPERTIES NO_SONAME ON SKIP_BUILD_RPATH ON)
target_link_options(talent_rtx_name PRIVATE LINKER:-soname,libtensorrt_rtx.so LINKER:--no-as-needed)
target_link_libraries(talent_rtx_name PRIVATE rtx_to_link)

install(TARGETS talent_plugin talent_rtx_name LIBRARY DESTINATION lib)

if(BUILD_TESTING)
  # With a function in the kernels' place that writes its call down: it needs no GPU.
  add_executable(test_plugin ${PROJECT_SOURCE_DIR}/tests/csrc/test_plugin.cpp plugin_log.cpp rca_fields.cpp
                             rca_plugin.cpp rca_launch.cpp)
  target_include_directories(test_plugin PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
  target_include_directories(test_plugin SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
  target_compile_options(test_plugin PRIVATE -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all)
  target_link_options(test_plugin PRIVATE -fsanitize=address,undefined)
  target_link_libraries(test_plugin PRIVATE TensorRT::headers)
  add_test(NAME test_plugin COMMAND test_plugin)

  set(tests ${PROJECT_SOURCE_DIR}/tests/csrc)
  add_library(other_plugin MODULE ${tests}/other_plugin.cpp)
  add_library(stand_in_rtx SHARED ${tests}/stand_in_rtx.cpp)
  set_target_properties(stand_in_rtx PROPERTIES OUTPUT_NAME tensorrt_rtx SOVERSION 1
                                                LIBRARY_OUTPUT_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/stand_in)
  add_executable(test_plugin_loader ${tests}/test_plugin_loader.cpp)
  target_include_directories(test_plugin_loader PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
  target_include_directories(test_plugin_loader SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
  target_link_libraries(test_plugin_loader PRIVATE TensorRT::headers ${CMAKE_DL_LIBS})
  add_dependencies(test_plugin_loader talent_plugin other_plugin stand_in_rtx talent_rtx_name)
  add_test(NAME test_plugin_loader COMMAND test_plugin_loader $<TARGET_FILE:talent_plugin> $<TARGET_FILE:other_plugin>
                                           $<TARGET_FILE:stand_in_rtx>)
endif()
