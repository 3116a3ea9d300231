#include "targets.h"

#include <algorithm>
#include <vector>

#include "files.h"
#include "quote.h"
#include "talent/errors.h"

namespace talent {
namespace {

// What a portable engine of TensorRT-RTX is for: its targets without Turing, which must be named.
constexpr std::string_view kPortableTargets[] = {"sm80", "sm86", "sm89", "sm120", "sm121"};

bool portable_covers(std::string_view arch) {
  return std::find(std::begin(kPortableTargets), std::end(kPortableTargets), arch) != std::end(kPortableTargets);
}

void check_gpu(std::string_view arch) {
  if (arch.size() < 3 || arch.substr(0, 2) != "sm" || arch.find_first_not_of("0123456789", 2) != arch.npos) {
    throw Error("expected a GPU such as sm87, received " + in_quotes(arch));
  }
}

}  // namespace

bool covers(std::string_view built_for, std::string_view arch) {
  check_gpu(arch);
  if (built_for == kPortable) {
    return portable_covers(arch);
  }
  while (true) {
    const size_t plus = built_for.find('+');
    if (built_for.substr(0, plus) == arch) {
      return true;
    }
    if (plus == built_for.npos) {
      return false;
    }
    built_for.remove_prefix(plus + 1);
  }
}

std::string build_command(const std::filesystem::path& directory, std::string_view runtime, std::string_view arch) {
  std::vector<std::string> words = {"talent-build", shown(directory)};
  if (!runtime.empty()) {
    words.insert(words.end(), {"--runtime", std::string(runtime)});
  }
  if (runtime == "tensorrt_rtx" && !arch.empty() && !portable_covers(arch)) {
    words.insert(words.end(), {"--arch", std::string(arch)});
  }
  return shell_command(words);
}

}  // namespace talent
