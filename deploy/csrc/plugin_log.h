// What the plugin has to say, through the logger of the TensorRT that loaded it. No library of TensorRT is linked, so
// its getLogger() cannot be called: TensorRT hands over a finder when it loads the library.
#pragma once

#include <NvInferRuntime.h>

namespace talent {

// From now on each message goes to the logger that `finder` finds then; nullptr, or a finder that finds none, sends it
// to stderr. `finder` is TensorRT's and outlives the library.
void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;

using Severity = nvinfer1::ILogger::Severity;

// One message, as printf makes it: what was expected, and what was received. Cut off at 1000 characters. Thread-safe.
[[gnu::format(printf, 2, 3)]] void report(Severity severity, const char* format, ...) noexcept;

}  // namespace talent
