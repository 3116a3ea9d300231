// FP16 and BF16 as bits, and their way to FP32 and back: to nearest, ties to even, the same on the host and on every
// device (but for the payload of a NaN).
#pragma once

#include <cstdint>

#include "device.h"

namespace talent {

struct Half {
  uint16_t bits;
};

struct Bfloat16 {
  uint16_t bits;
};

namespace formats {

TALENT_BOTH uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

TALENT_BOTH float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace formats

TALENT_BOTH float to_float(float value) { return value; }

TALENT_BOTH float to_float(Bfloat16 value) { return formats::float_of(uint32_t{value.bits} << 16); }

TALENT_BOTH float to_float(Half value) {
#ifdef __CUDA_ARCH__
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
#else
  const uint32_t sign = uint32_t{value.bits & 0x8000u} << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // infinity and NaN, which keeps its payload
    return formats::float_of(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  }
  if (magnitude < 0x400u) {  // zero and subnormals: multiples of 2^-24
    return formats::float_of(sign | formats::bits_of(static_cast<float>(magnitude) * 0x1p-24f));
  }
  return formats::float_of(sign | ((magnitude << 13) + (112u << 23)));
#endif
}

// To `Number`: float, Half or Bfloat16.
template <typename Number>
TALENT_BOTH Number from_float(float value);

template <>
TALENT_BOTH float from_float<float>(float value) {
  return value;
}

template <>
TALENT_BOTH Bfloat16 from_float<Bfloat16>(float value) {
  const uint32_t bits = formats::bits_of(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {  // rounding could carry a NaN into infinity
    return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  }
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

template <>
TALENT_BOTH Half from_float<Half>(float value) {
#ifdef __CUDA_ARCH__
  Half result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
#else
  const uint32_t bits = formats::bits_of(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return {static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu))};
  }
  if (magnitude >= 0x477ff000u) {  // 65520 and more round to infinity
    return {static_cast<uint16_t>(sign | 0x7c00u)};
  }
  if (magnitude < 0x38800000u) {  // below 2^-14: added to 0.5, the last bits of which are multiples of 2^-24
    const float shifted = formats::float_of(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (formats::bits_of(shifted) - formats::bits_of(0.5f)))};
  }
  const uint32_t rounded = magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u);
  return {static_cast<uint16_t>(sign | rounded >> 13)};
#endif
}

}  // namespace talent
