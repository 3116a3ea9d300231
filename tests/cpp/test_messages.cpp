// Texts that are to be the same as Python's: paths, commands, names that were meant.
#include <string>

#include "check.h"
#include "files.h"
#include "quote.h"
#include "suggest.h"
#include "talent/bundle.h"
#include "talent/errors.h"
#include "targets.h"

namespace {

void check_equal(const std::string& received, const char* expected) {
  check::that(received == expected, "%s, received %s", expected, received.c_str());
}

void check_paths() {
  check_equal(talent::shown("a//b/./c/"), "a/b/c");
  check_equal(talent::shown("./a/../b"), "a/../b");
  check_equal(talent::shown("/"), "/");
  check_equal(talent::shown("///a"), "/a");
  check_equal(talent::shown("."), ".");
}

void check_commands() {
  check_equal(talent::build_command("out/bundle"), "talent-build out/bundle");
  check_equal(talent::build_command("my bundle's", "tensorrt", "sm87"),
              R"(talent-build 'my bundle'"'"'s' --runtime tensorrt)");
  check_equal(talent::build_command("b", "tensorrt_rtx", "sm75"), "talent-build b --runtime tensorrt_rtx --arch sm75");
  check_equal(talent::build_command("b", "tensorrt_rtx", "sm120"), "talent-build b --runtime tensorrt_rtx");
  check_equal(talent::shell_command({"", "größe"}), "'' 'größe'");
}

void check_suggestions() {
  check_equal(talent::suggest("tresholds", {"preset", "threshold"}), "; did you mean 'threshold'?");
  check_equal(talent::suggest("x", {"preset", "batch"}), "; known: batch, preset");
  check_equal(talent::suggest("", {"preset"}), "; known: preset");
  check_equal(talent::suggest("sha", {"sha256", "arch"}), "; did you mean 'sha256'?");  // 0.667 beside 0.571
  check_equal(talent::suggest("aaz", {"aax", "aay", "aaw"}), "; did you mean 'aay'?");  // of equals the last
  check_equal(talent::suggest(std::string(100'000, 'p'), {"preset"}), "; known: preset");
}

void check_gpus() {
  const struct {
    const char* built_for;
    const char* arch;
    bool fits;
  } cases[] = {{"sm87", "sm87", true},      {"sm87", "sm8", false},       {"sm86+sm89", "sm89", true},
               {"sm86+sm89", "sm87", false}, {"portable", "sm80", true},   {"portable", "sm120", true},
               {"portable", "sm75", false},  {"portable", "sm87", false},  {"portable", "sm90", false},
               {"portable", "sm110", false}, {"sm75", "sm75", true}};
  for (const auto& [built_for, arch, fits] : cases) {
    talent::EngineRecord engine;
    engine.runtime = "tensorrt";
    engine.version = "10.3.0";
    engine.arch = built_for;
    check::that(engine.fits("tensorrt", "10.3.0", arch) == fits, "%s on %s: %d", built_for, arch, fits);
    check::that(!engine.fits("tensorrt", "10.3.1", arch) && !engine.fits("tensorrt_rtx", "10.3.0", arch),
                "%s to be for one version and runtime", built_for);
  }
  for (const char* arch : {"", "sm", "87", "sm8x", "portable"}) {
    try {
      talent::covers("sm87", arch);
      check::that(false, "%s to be no GPU", arch);
    } catch (const talent::Error& error) {
      check_equal(error.what(), (std::string("expected a GPU such as sm87, received '") + arch + "'").c_str());
    }
  }
}

}  // namespace

int main() {
  check_paths();
  check_commands();
  check_suggestions();
  check_gpus();
  return check::result();
}
