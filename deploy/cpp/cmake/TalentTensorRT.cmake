# TensorRT for libtalent, in a build of the whole repository where nvcc and TensorRT's headers are: its kernels are
# those of deploy/csrc, and CUDA's runtime is linked in. TensorRT's library is opened when it is asked for, and not
# linked.
if(NOT TARGET picture_kernels)
  message(STATUS "libtalent without TensorRT: the CUDA kernels of deploy/csrc are not built here")
  return()
endif()
find_package(TensorRTHeaders MODULE QUIET)
if(NOT TensorRTHeaders_FOUND)
  message(STATUS "libtalent without TensorRT: ${TensorRTHeaders_PROBLEM}")
  return()
endif()
find_package(CUDAToolkit REQUIRED)
message(STATUS "libtalent with TensorRT: ${TensorRTHeaders_VERSION} (${TensorRTHeaders_INCLUDE_DIR})")

set(TALENT_TENSORRT_SOURCES
    cuda_device.cpp cuda_graph.cpp cuda_memory.cpp tensorrt_backend.cpp tensorrt_choice.cpp tensorrt_engine.cpp
    tensorrt_lane.cpp tensorrt_lanes.cpp tensorrt_library.cpp tensorrt_text.cpp tensorrt_vision.cpp)
list(TRANSFORM TALENT_TENSORRT_SOURCES PREPEND ${CMAKE_CURRENT_SOURCE_DIR}/src/)

target_sources(talent PRIVATE ${TALENT_TENSORRT_SOURCES} $<TARGET_OBJECTS:picture_kernels>)
target_compile_definitions(talent PRIVATE TALENT_WITH_TENSORRT)
target_include_directories(talent SYSTEM PRIVATE ${TensorRTHeaders_INCLUDE_DIR} ${CUDAToolkit_INCLUDE_DIRS})
target_link_libraries(talent PRIVATE CUDA::cudart_static ${CMAKE_DL_LIBS})
# The kernels are compiled already, and need no linker of nvcc's.
set_target_properties(talent PROPERTIES CUDA_ARCHITECTURES OFF LINKER_LANGUAGE CXX)
list(APPEND TALENT_DEPENDENCIES CUDAToolkit)

if(BUILD_TESTING)
  add_subdirectory(${CMAKE_CURRENT_SOURCE_DIR}/../../tests/cpp/tensorrt ${CMAKE_CURRENT_BINARY_DIR}/tests_tensorrt)
endif()
