# The headers of TensorRT, which are all that a plugin needs of it: no library of TensorRT is linked.
#
# Where TENSORRT_ROOT is given, as a CMake variable or else in the environment, they must be there: it is the directory
# that NVIDIA's tar file unpacks to, or its include/. Else they are looked for where Debian and JetPack install them and
# where tar files usually go. Sets
#   TensorRTHeaders_FOUND        whether there are headers that will do
#   TensorRTHeaders_INCLUDE_DIR
#   TensorRTHeaders_VERSION      10.13.3, or 1.7.1 for the headers of TensorRT-RTX
#   TensorRTHeaders_PROBLEM      what was expected, what was found and what to do, where it is not FOUND
# and the target TensorRT::headers. A problem is fatal with REQUIRED or a TENSORRT_ROOT.

set(TensorRTHeaders_OLDEST 10.3)  # its IPluginV3 is the one of today

function(_tensorrt_headers_directory result)
  set(machine ${CMAKE_LIBRARY_ARCHITECTURE})  # x86_64-linux-gnu
  if(NOT machine)
    set(machine ${CMAKE_HOST_SYSTEM_PROCESSOR}-linux-gnu)
  endif()
  set(suffixes include include/${machine} targets/${machine}/include)
  if(TENSORRT_ROOT)
    find_path(directory NvInferRuntime.h PATHS ${TENSORRT_ROOT} PATH_SUFFIXES . ${suffixes} NO_CACHE NO_DEFAULT_PATH
              NO_CMAKE_FIND_ROOT_PATH)
  else()
    find_path(directory NvInferRuntime.h PATHS /usr /usr/local/tensorrt /usr/local/TensorRT /opt/tensorrt /opt/TensorRT
              PATH_SUFFIXES ${suffixes} NO_CACHE)
  endif()
  if(directory)
    get_filename_component(directory ${directory} ABSOLUTE)
  endif()
  set(${result} ${directory} PARENT_SCOPE)
endfunction()

# 10.3.0 out of NvInferVersion.h, where a number is written behind its macro or behind the macro that this one names.
function(_tensorrt_headers_version directory result)
  set(${result} "" PARENT_SCOPE)
  if(NOT EXISTS ${directory}/NvInferVersion.h)
    return()
  endif()
  file(READ ${directory}/NvInferVersion.h content)
  set(numbers "")
  foreach(part MAJOR MINOR PATCH)
    if(NOT content MATCHES "#define[ \t]+NV_TENSORRT_${part}[ \t]+([A-Z_0-9]+)")
      return()
    endif()
    set(value ${CMAKE_MATCH_1})
    if(NOT value MATCHES "^[0-9]+$")
      if(NOT content MATCHES "#define[ \t]+${value}[ \t]+([0-9]+)")
        return()
      endif()
      set(value ${CMAKE_MATCH_1})
    endif()
    list(APPEND numbers ${value})
  endforeach()
  list(JOIN numbers . version)
  set(${result} ${version} PARENT_SCOPE)
endfunction()

if(NOT TENSORRT_ROOT)
  set(TENSORRT_ROOT $ENV{TENSORRT_ROOT})
endif()
set(TensorRTHeaders_FOUND FALSE)
set(TensorRTHeaders_VERSION "")
set(TensorRTHeaders_PROBLEM "")
_tensorrt_headers_directory(TensorRTHeaders_INCLUDE_DIR)
if(TENSORRT_ROOT)
  set(_place "TENSORRT_ROOT=${TENSORRT_ROOT}")
else()
  set(_place "the system's directories")
endif()
if(NOT TensorRTHeaders_INCLUDE_DIR)
  set(TensorRTHeaders_PROBLEM "expected TensorRT's headers (include/NvInferRuntime.h) in ${_place}, found none")
else()
  _tensorrt_headers_version(${TensorRTHeaders_INCLUDE_DIR} TensorRTHeaders_VERSION)
  if(NOT TensorRTHeaders_VERSION)
    set(TensorRTHeaders_PROBLEM
        "expected NV_TENSORRT_MAJOR, MINOR and PATCH in ${TensorRTHeaders_INCLUDE_DIR}/NvInferVersion.h, found none")
  elseif(TensorRTHeaders_VERSION VERSION_LESS TensorRTHeaders_OLDEST AND
         TensorRTHeaders_VERSION VERSION_GREATER_EQUAL 2)  # below are those of TensorRT-RTX, which has IPluginV3 too
    set(TensorRTHeaders_PROBLEM "expected TensorRT ${TensorRTHeaders_OLDEST} or newer, found the headers of \
${TensorRTHeaders_VERSION} in ${TensorRTHeaders_INCLUDE_DIR}")
  else()
    set(TensorRTHeaders_FOUND TRUE)
  endif()
endif()
unset(_place)

if(TensorRTHeaders_FOUND)
  if(NOT TARGET TensorRT::headers)
    add_library(TensorRT::headers INTERFACE IMPORTED)
    target_include_directories(TensorRT::headers SYSTEM INTERFACE ${TensorRTHeaders_INCLUDE_DIR})
  endif()
else()
  string(APPEND TensorRTHeaders_PROBLEM ". On a Jetson: apt install libnvinfer-headers-dev. Elsewhere take NVIDIA's \
tar file of TensorRT, or github.com/NVIDIA/TensorRT at the version that will load the plugin, and name its directory: \
cmake -DTENSORRT_ROOT=/path/to/TensorRT")
  if(TensorRTHeaders_FIND_REQUIRED OR TENSORRT_ROOT)
    message(FATAL_ERROR "${TensorRTHeaders_PROBLEM}")
  endif()
endif()
