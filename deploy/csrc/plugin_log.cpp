#include "plugin_log.h"

#include <atomic>
#include <cstdarg>
#include <cstdio>

namespace talent {
namespace {

constexpr size_t kLongest = 1000;

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

// The logger of now: the one of the builder or runtime that is at work, which another may follow.
nvinfer1::ILogger* find_logger() noexcept {
  nvinfer1::ILoggerFinder* finder = logger_finder.load();
  if (finder == nullptr) {
    return nullptr;
  }
  try {
    return finder->findLogger();
  } catch (...) {  // it alone of the interface is not noexcept
    std::fprintf(stderr, "RcaCostAggregation: expected TensorRT to find its logger, received an exception\n");
    return nullptr;
  }
}

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept { logger_finder.store(finder); }

void report(Severity severity, const char* format, ...) noexcept {
  char message[kLongest];
  std::va_list values;
  va_start(values, format);
  std::vsnprintf(message, sizeof message, format, values);
  va_end(values);
  if (nvinfer1::ILogger* logger = find_logger()) {
    logger->log(severity, message);
  } else {
    std::fprintf(stderr, "%s\n", message);
  }
}

}  // namespace talent
