// Checks that print what was expected where, and count.
#pragma once

#include <cstdio>

namespace check {

inline int failures = 0;

template <typename... Values>
void that(bool holds, const char* format, Values... values) {
  if (!holds && ++failures <= 20) {
    std::fprintf(stderr, "expected ");
    std::fprintf(stderr, format, values...);
    std::fprintf(stderr, "\n");
  }
}

inline int result() {
  std::fprintf(stderr, failures == 0 ? "all checks hold\n" : "%d checks failed\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace check
