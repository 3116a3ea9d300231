// SHA-256 against the examples of FIPS 180-4, and what is said of files that are not what was recorded.
#include "integrity.h"

#include <fstream>
#include <string>
#include <system_error>

#include "check.h"
#include "temporary_folder.h"

namespace {

std::filesystem::path folder;

std::filesystem::path write(const char* name, const std::string& content) {
  std::ofstream(folder / name, std::ios::binary) << content;
  return folder / name;
}

void check_digest(const char* what, const std::string& content, const char* expected) {
  const std::string received = talent::sha256(write("content", content));
  check::that(received == expected, "the SHA-256 of %s to be %s, received %s", what, expected, received.c_str());
}

void check_digests() {
  check_digest("nothing", "", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  check_digest("abc", "abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  check_digest("two blocks", "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
               "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  check_digest("several pieces", std::string(3'000'000, 'a'),
               "2a152c894398719c0570f83fac34ac03a0f6e8e474b995c2403aa5434f7b9dd4");
}

void check_problem(const char* expected, const std::filesystem::path& path, const talent::FileRecord& record) {
  const std::string received = talent::problem(path, record, talent::Verify::kDigests);
  check::that(received == expected, "the problem to be \"%s\", received \"%s\"", expected, received.c_str());
}

void check_problems() {
  const std::string digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
  const auto path = write("abc", "abc");
  check_problem("", path, {3, digest});
  check_problem("was cut short (expected 4 bytes, received 3)", path, {4, digest});
  check_problem("was changed (expected 2 bytes, received 3)", path, {2, digest});
  check_problem(("was changed (expected SHA-256 " + std::string(64, '0') + ", received " + digest + ")").c_str(), path,
                {3, std::string(64, '0')});
  check_problem("is missing", folder / "none", {3, digest});
  check_problem("is missing", folder, {3, digest});
  check_problem("is missing", path / "below a file", {3, digest});
  std::filesystem::create_symlink("loop", folder / "loop");
  check_problem("is missing", folder / "loop", {3, digest});
  check::that(talent::problem(path, {3, "another"}, talent::Verify::kSizes).empty(), "no digest to be compared");
  try {
    talent::sha256(folder);
    check::that(false, "a directory to have no digest");
  } catch (const std::system_error& error) {
    check::that(error.code() == std::errc::is_a_directory, "\"is a directory\", received %s", error.what());
  }
}

}  // namespace

int main() {
  const TemporaryFolder temporary;
  folder = temporary.path;
  check_digests();
  check_problems();
  return check::result();
}
