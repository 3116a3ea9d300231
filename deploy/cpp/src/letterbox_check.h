// What the two ways between photo and network refuse alike.
#pragma once

#include <string>

#include "talent/image.h"

namespace talent {

[[noreturn]] void refuse(const std::string& expected, const std::string& received);

// Throws Error for a side of the photo or the canvas that cannot be.
void check_letterbox(const Letterbox& letterbox);

}  // namespace talent
