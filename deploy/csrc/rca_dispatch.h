// From a launch to the kernel that it names.
#pragma once

#include "rca_device.h"
#include "rca_launch.h"

namespace talent {

// Calls visit(kernel) with an object of the kernel that a launch names.
template <typename Number, int kIndex = 0, typename Visit>
void visit_rows(int variant, Visit visit) {
  if constexpr (kIndex < kRowShapes) {
    if (variant == kIndex) {
      constexpr RcaRowShape kShape = sizeof(Number) == 4 ? kFloatRows[kIndex] : kHalfRows[kIndex];
      visit(RcaRows<Number, kShape.lanes, kShape.vectors>());
    } else {
      visit_rows<Number, kIndex + 1>(variant, visit);
    }
  }
}

template <typename Number, int kIndex = 0, typename Visit>
void visit_tensor(int variant, Visit visit) {
  if constexpr (kIndex < kTensorVariants && sizeof(Number) == 2) {
    if (variant == kIndex) {
      visit(RcaTensor<Number, kTensorShapes[kIndex].width, kTensorShapes[kIndex].tiles>());
    } else {
      visit_tensor<Number, kIndex + 1>(variant, visit);
    }
  }
}

template <typename Number, typename Visit>
void visit_kind(const RcaLaunch& launch, Visit visit) {
  if (launch.kind == RcaKernelKind::kRows) {
    visit_rows<Number>(launch.variant, visit);
  } else if (launch.kind == RcaKernelKind::kTensor) {
    visit_tensor<Number>(launch.variant, visit);
  } else if (launch.kind == RcaKernelKind::kAny) {
    visit(RcaAny<Number>());
  }
}

template <typename Visit>
void visit_kernel(const RcaLaunch& launch, RcaType type, Visit visit) {
  if (type == RcaType::kFloat) {
    visit_kind<float>(launch, visit);
  } else if (type == RcaType::kHalf) {
    visit_kind<Half>(launch, visit);
  } else {
    visit_kind<Bfloat16>(launch, visit);
  }
}

}  // namespace talent
