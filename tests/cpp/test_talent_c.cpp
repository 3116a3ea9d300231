// The C interface, called by a C program over a backend that computes on the CPU; errors are the thread's own.
#include <memory>
#include <string>
#include <thread>

#include "backends.h"
#include "check.h"
#include "talent_c_calls.h"
#include "talent_c_handle.h"
#include "temporary_folder.h"
#include "toy_backend.h"

namespace {

std::unique_ptr<talent_segmenter> toy(const std::filesystem::path& folder, ToyControls& controls) {
  talent::Bundle bundle = talent::Bundle::load(folder);
  auto backend = std::make_unique<ToyBackend>(bundle, controls);
  return std::make_unique<talent_segmenter>(talent::segmenter_over(std::move(bundle), std::move(backend)));
}

void check_threads(talent_segmenter* segmenter) {
  talent_prompt* prompt = nullptr;
  check::that(talent_encode(segmenter, " ", &prompt) == TALENT_BAD_INPUT, "no words to be refused");
  const std::string before = talent_last_error();
  std::thread([&] {
    check::that(std::string(talent_last_error()).empty(), "no error in another thread");
    talent_encode(segmenter, nullptr, &prompt);
  }).join();
  check::that(talent_last_error() == before, "the thread's own error, received %s", talent_last_error());
  const std::string long_name(10'000, 'x');
  talent_segmenter* none = nullptr;
  check::that(talent_load(long_name.c_str(), nullptr, &none) == TALENT_BAD_INPUT &&
                  std::string(talent_last_error()).size() == 4095,
              "a long message to be cut");
}

}  // namespace

int main() {
  const TemporaryFolder temporary;
  toy_bundle(temporary.path);
  ToyControls controls;
  const ToyPicture picture;
  const auto segmenter = toy(temporary.path, controls), other = toy(temporary.path, controls);
  check::that(check_calls(segmenter.get(), picture.pixels.data(), ToyPicture::kWidth, ToyPicture::kHeight) == 0,
              "the calls of a C program to succeed");
  check::that(check_refusals(other.get(), temporary.path.c_str(), picture.pixels.data(), ToyPicture::kWidth,
                             ToyPicture::kHeight) == 0,
              "bad input from a C program to be refused");
  check_threads(other.get());
  return check::result();
}
