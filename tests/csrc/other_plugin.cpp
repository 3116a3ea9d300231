// A library that says it was built with the headers of TensorRT 8.6.1.
extern "C" __attribute__((visibility("default"))) int talent_plugin_tensorrt() { return 80601; }
