# The operator on the host, and the CUDA kernels where nvcc is.
add_library(talent_reference SHARED rca_reference.cpp rca_launch.cpp talent_reference.cpp)

option(TALENT_CUDA "compile the CUDA kernels, where nvcc is" ON)
if(NOT TALENT_CUDA)
  message(STATUS "No CUDA kernels and no TensorRT plugin: TALENT_CUDA is off")
  return()
endif()

set(TALENT_ARCHITECTURES 75 80 86 87 89 90 100 110 120 CACHE STRING
    "compute capabilities that the kernels are compiled for; those that nvcc does not know are left out")

include(CheckLanguage)
if(NOT CMAKE_CUDA_COMPILER)
  find_program(TALENT_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin /usr/local/cuda/bin)  # often not on the PATH
  if(TALENT_NVCC)
    set(CMAKE_CUDA_COMPILER ${TALENT_NVCC})
  endif()
endif()
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES OFF)  # until nvcc has said which ones it knows
  set(TALENT_CHOOSES_ARCHITECTURES ON)
endif()
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  message(STATUS "No CUDA kernels and no TensorRT plugin: expected nvcc on the PATH or in /usr/local/cuda/bin, found "
                 "none. Install a CUDA toolkit, or name its compiler: cmake -DCMAKE_CUDA_COMPILER=/path/to/nvcc")
  return()
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

if(TALENT_CHOOSES_ARCHITECTURES)
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-code OUTPUT_VARIABLE known RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "${CMAKE_CUDA_COMPILER} does not say which GPUs it compiles for; name them: "
                        "cmake -DCMAKE_CUDA_ARCHITECTURES=\"86;87\"")
  endif()
  set(chosen "")
  set(unknown "")
  foreach(architecture IN LISTS TALENT_ARCHITECTURES)
    if(known MATCHES "sm_${architecture}\n")
      list(APPEND chosen ${architecture}-real)
      set(newest ${architecture})
    else()
      list(APPEND unknown ${architecture})
    endif()
  endforeach()
  if(chosen)
    list(APPEND chosen ${newest}-virtual)  # newer GPUs compile it when it is loaded
  endif()
  if(unknown)
    message(STATUS "nvcc ${CMAKE_CUDA_COMPILER_VERSION} does not know these architectures, which are left out: "
                   "${unknown}")
  endif()
  if(NOT chosen)
    message(FATAL_ERROR "expected one of the architectures ${TALENT_ARCHITECTURES}, but nvcc "
                        "${CMAKE_CUDA_COMPILER_VERSION} knows none of them; name one: -DTALENT_ARCHITECTURES=86")
  endif()
  set(CMAKE_CUDA_ARCHITECTURES ${chosen})
endif()
message(STATUS "CUDA kernels for: ${CMAKE_CUDA_ARCHITECTURES}")

option(TALENT_WARNINGS_ARE_ERRORS "for those who change the kernels" OFF)
set(warnings $<$<BOOL:${TALENT_WARNINGS_ARE_ERRORS}>:-Werror=all-warnings>)
add_library(rca_kernels OBJECT rca_kernel.cu rca_launch.cpp)
add_library(picture_kernels OBJECT picture_kernel.cu picture_launch.cpp)
foreach(kernels rca_kernels picture_kernels)
  target_compile_features(${kernels} PUBLIC cuda_std_17)
  target_compile_options(${kernels} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--threads=2 ${warnings}>)
  target_include_directories(${kernels} PUBLIC ${CMAKE_CURRENT_SOURCE_DIR})
  target_link_libraries(${kernels} PUBLIC CUDA::cudart_static)
endforeach()

add_library(talent_kernels SHARED talent_kernels.cpp)
target_link_libraries(talent_kernels PRIVATE rca_kernels picture_kernels)
install(TARGETS talent_kernels LIBRARY DESTINATION lib)  # cmake --install build --prefix $VIRTUAL_ENV
