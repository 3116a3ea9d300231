// Which GPU is here.
#pragma once

#include <string>

namespace talent {

// "sm87" for a GPU of compute capability 8.7. `runtime`, which needs it, is named in the Error, which is thrown where
// there is no driver, no GPU, or none of this number.
std::string gpu_architecture(int device, const std::string& runtime);

}  // namespace talent
