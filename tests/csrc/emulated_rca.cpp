#include "emulated_rca.h"

#include "export.h"
#include "rca_dispatch.h"

namespace emulated {

const char* rca_cost_aggregation(const talent::RcaProblem& problem, talent::RcaMethod method,
                                 const talent::DeviceLimits& device, Order order) {
  const talent::RcaLaunch plan = talent::plan_rca(problem, method, device);
  if (plan.error != nullptr) {
    return plan.error;
  }
  const talent::RcaArguments arguments = talent::rca_arguments(problem, plan);
  const char* wrong = nullptr;
  talent::visit_kernel(plan, problem.type, [&](auto kernel) {
    wrong = launch(plan.blocks, plan.threads, plan.shared_bytes, order, [&] { decltype(kernel)::run(arguments); });
  });
  return wrong;
}

}  // namespace emulated

// For ctypes: `kind` receives the RcaKernelKind, `passes` those that a block makes.
extern "C" TALENT_EXPORT const char* talent_rca_emulated(
    const void* visual, const void* text, const void* weight, const void* bias, void* output, int64_t visual_batch,
    int64_t batch, int64_t tokens, int64_t words, int64_t width, int32_t type, int32_t activation, int32_t method,
    int32_t capability, int32_t multiprocessors, int32_t shared_bytes, int32_t order, int32_t* kind, int32_t* passes) {
  using namespace talent;
  const RcaProblem problem = {visual, text,   weight, bias,  output, visual_batch,
                              batch,  tokens, words,  width, RcaType{type}, RcaActivation{activation}};
  const DeviceLimits device = {capability, multiprocessors, shared_bytes};
  const RcaLaunch plan = plan_rca(problem, RcaMethod{method}, device);
  *kind = static_cast<int32_t>(plan.kind);
  *passes = plan.passes;
  return emulated::rca_cost_aggregation(problem, RcaMethod{method}, device, emulated::Order{order});
}
