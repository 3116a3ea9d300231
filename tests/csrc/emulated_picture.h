// The picture kernels by their own code, on the emulated device.
#pragma once

#include "emulated_device.h"
#include "picture_kernel.h"

namespace emulated {

// As talent::picture_to_input and talent::logits_to_mask, on pointers of the host.
const char* picture_to_input(const talent::PictureInput& problem, Order order);
const char* logits_to_mask(const talent::PictureMask& problem, Order order);

}  // namespace emulated
