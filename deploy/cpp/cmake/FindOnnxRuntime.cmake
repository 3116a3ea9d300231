# ONNX Runtime's C header and its library: OnnxRuntime::OnnxRuntime.
#
# Where ONNXRUNTIME_ROOT is given, as a CMake variable or else in the environment, they must be there: it is the
# directory that a release of ONNX Runtime unpacks to. Else they are looked for in the system's directories. (The
# Python package has the library but no headers.)
if(NOT ONNXRUNTIME_ROOT)
  set(ONNXRUNTIME_ROOT $ENV{ONNXRUNTIME_ROOT})
endif()
set(_suffixes include include/onnxruntime include/onnxruntime/core/session)
if(ONNXRUNTIME_ROOT)
  find_path(ONNXRUNTIME_INCLUDE_DIR onnxruntime_c_api.h PATHS ${ONNXRUNTIME_ROOT} PATH_SUFFIXES ${_suffixes}
            NO_DEFAULT_PATH)
  find_library(ONNXRUNTIME_LIBRARY onnxruntime PATHS ${ONNXRUNTIME_ROOT} PATH_SUFFIXES lib lib64 NO_DEFAULT_PATH)
else()
  find_path(ONNXRUNTIME_INCLUDE_DIR onnxruntime_c_api.h PATH_SUFFIXES onnxruntime onnxruntime/core/session)
  find_library(ONNXRUNTIME_LIBRARY onnxruntime)
endif()
mark_as_advanced(ONNXRUNTIME_INCLUDE_DIR ONNXRUNTIME_LIBRARY)
unset(_suffixes)

include(FindPackageHandleStandardArgs)
if(ONNXRUNTIME_ROOT)
  set(OnnxRuntime_FIND_REQUIRED TRUE)  # it was asked for
endif()
find_package_handle_standard_args(OnnxRuntime REQUIRED_VARS ONNXRUNTIME_LIBRARY ONNXRUNTIME_INCLUDE_DIR
                                  REASON_FAILURE_MESSAGE "expected include/onnxruntime_c_api.h and \
lib/libonnxruntime.so in ONNXRUNTIME_ROOT, where a release from github.com/microsoft/onnxruntime is unpacked")
if(OnnxRuntime_FOUND AND NOT TARGET OnnxRuntime::OnnxRuntime)
  add_library(OnnxRuntime::OnnxRuntime UNKNOWN IMPORTED)
  set_target_properties(OnnxRuntime::OnnxRuntime PROPERTIES IMPORTED_LOCATION ${ONNXRUNTIME_LIBRARY})
  target_include_directories(OnnxRuntime::OnnxRuntime SYSTEM INTERFACE ${ONNXRUNTIME_INCLUDE_DIR})
endif()
