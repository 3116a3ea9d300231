// Errors that a user can mend.
#pragma once

#include <stdexcept>

#include "talent/export.h"

namespace talent {

// Bad input: the message, one line of UTF-8, says what was expected, what was received and what to do next.
class TALENT_API Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace talent
