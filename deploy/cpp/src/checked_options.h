// What may stand in Options, held against a bundle.
#pragma once

#include "talent/bundle.h"
#include "talent/segmenter.h"

namespace talent {

// Throws Error for the number of a GPU that cannot be.
void check_device(const Options& options);

// Throws Error for a precision that there is not, and where the bundle's graphs compute in another:
// Bundle.check_precision of deploy/bundle.py.
void check_precision(const Bundle& bundle, const Options& options);

// The bundle's or the one that was asked for. Throws Error where it is outside 0 to below 1.
double checked_threshold(const Bundle& bundle, const Options& options);

}  // namespace talent
