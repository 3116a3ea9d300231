// FP16 and BF16: every number there and back, and rounding to the nearest one, ties to even.
#include <cmath>
#include <limits>
#include <random>

#include "check.h"
#include "number_formats.h"

using namespace talent;

namespace {

// The value of a number with `exponent_bits` and `fraction_bits`, by its definition.
double value_of(uint16_t bits, int exponent_bits, int fraction_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = (bits >> fraction_bits) & ((1 << exponent_bits) - 1);
  const int fraction = bits & ((1 << fraction_bits) - 1);
  const double sign = bits & 0x8000 ? -1.0 : 1.0;
  if (exponent == (1 << exponent_bits) - 1) {
    return fraction ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  }
  return exponent == 0 ? sign * std::ldexp(fraction, 1 - bias - fraction_bits)
                       : sign * std::ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits);
}

template <typename Number>
void check_all(const char* name, int exponent_bits, int fraction_bits) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto pattern = static_cast<uint16_t>(bits);
    const double expected = value_of(pattern, exponent_bits, fraction_bits);
    const float value = to_float(Number{pattern});
    const uint16_t back = from_float<Number>(value).bits;
    if (std::isnan(expected)) {
      check::that(std::isnan(value) && std::isnan(value_of(back, exponent_bits, fraction_bits)),
                  "%s %04x to stay NaN, received %g and %04x", name, bits, value, back);
    } else {
      check::that(value == expected && std::signbit(value) == std::signbit(expected) && back == pattern,
                  "%s %04x to be %g and to come back, received %g and %04x", name, bits, expected, value, back);
    }
  }
}

// What `value` rounds to, from its neighbours in the format: the even one of two that are equally near.
uint16_t nearest(double value, int exponent_bits, int fraction_bits) {
  const auto infinity = static_cast<uint16_t>(((1 << exponent_bits) - 1) << fraction_bits);
  uint16_t low = 0;
  uint16_t high = infinity;
  while (high - low > 1) {
    const auto middle = static_cast<uint16_t>((low + high) / 2);
    (value_of(middle, exponent_bits, fraction_bits) <= value ? low : high) = middle;
  }
  const double below = value_of(low, exponent_bits, fraction_bits);
  // beyond the largest number the next one that the format has no place for counts, not infinity
  const double above = high == infinity ? 2 * below - value_of(low - 1, exponent_bits, fraction_bits)
                                        : value_of(high, exponent_bits, fraction_bits);
  if (value - below == above - value) {
    return low % 2 == 0 ? low : high;
  }
  return value - below < above - value ? low : high;
}

template <typename Number>
void check_rounding(const char* name, int exponent_bits, int fraction_bits) {
  std::mt19937 random(1);
  std::uniform_int_distribution<uint32_t> bits(0, 0x7f7fffff);
  std::uniform_int_distribution<uint32_t> patterns(0, (1u << (exponent_bits + fraction_bits)) - 2);
  for (int i = 0; i < 200000; ++i) {
    float value = formats::float_of(bits(random));
    if (i % 2) {  // halfway between two neighbours, or just beside it
      const auto pattern = static_cast<uint16_t>(patterns(random));
      const double step = value_of(pattern + 1, exponent_bits, fraction_bits);
      const double middle = (value_of(pattern, exponent_bits, fraction_bits) + step) / 2;
      value = std::isfinite(middle) ? static_cast<float>(middle) : 65520.0f;
      value = i % 3 == 0 ? value : std::nextafter(value, i % 3 == 1 ? 0.0f : HUGE_VALF);
    }
    if (!std::isfinite(value)) {
      continue;
    }
    const uint16_t expected = nearest(value, exponent_bits, fraction_bits);
    const uint16_t received = from_float<Number>(value).bits;
    check::that(received == expected, "%a as %s to be %04x, received %04x", value, name, expected, received);
    check::that(from_float<Number>(-value).bits == (expected | 0x8000), "%a as %s to be symmetric", -value, name);
  }
}

}  // namespace

int main() {
  check_all<Half>("FP16", 5, 10);
  check_all<Bfloat16>("BF16", 8, 7);
  check_rounding<Half>("FP16", 5, 10);
  check_rounding<Bfloat16>("BF16", 8, 7);
  return check::result();
}
