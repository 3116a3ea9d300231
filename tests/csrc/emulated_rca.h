// An RCA by the code of its CUDA kernels, on the emulated device.
#pragma once

#include "emulated_device.h"
#include "rca_launch.h"

namespace emulated {

// As talent::rca_cost_aggregation, on pointers of the host.
const char* rca_cost_aggregation(const talent::RcaProblem& problem, talent::RcaMethod method,
                                 const talent::DeviceLimits& device, Order order);

}  // namespace emulated
