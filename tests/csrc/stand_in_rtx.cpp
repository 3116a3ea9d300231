// Stands for TensorRT-RTX, of which only the name is looked at.
extern "C" __attribute__((visibility("default"))) int stand_in() { return 1; }
