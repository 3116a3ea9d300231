#include "suggest.h"

#include <algorithm>

#include "quote.h"
#include "utf8.h"

namespace talent {
namespace {

constexpr double kNear = 0.5;

// The characters that two texts share: their longest common part, and so on before it and behind it (Ratcliff and
// Obershelp, as Python's difflib, with the same choice among parts of one length: the first).
size_t matching(std::u32string_view one, std::u32string_view other) {
  size_t best = 0, best_one = 0, best_other = 0;
  std::vector<size_t> lengths(other.size() + 1), before(other.size() + 1);  // of common parts that end before an index
  for (size_t i = 0; i < one.size(); ++i) {
    std::swap(lengths, before);
    for (size_t j = 0; j < other.size(); ++j) {
      lengths[j + 1] = one[i] == other[j] ? before[j] + 1 : 0;
      if (lengths[j + 1] > best) {
        best = lengths[j + 1];
        best_one = i + 1 - best;
        best_other = j + 1 - best;
      }
    }
  }
  return best == 0 ? 0
                   : best + matching(one.substr(0, best_one), other.substr(0, best_other)) +
                         matching(one.substr(best_one + best), other.substr(best_other + best));
}

// From 0 for nothing in common to 1 for the same. Below kNear, 0 may stand for it.
double likeness(std::u32string_view known, std::u32string_view name) {
  const size_t both = known.size() + name.size();
  if (both == 0) {
    return 1;
  }
  const auto ratio = [both](size_t shared) { return 2.0 * static_cast<double>(shared) / static_cast<double>(both); };
  return ratio(std::min(known.size(), name.size())) < kNear ? 0 : ratio(matching(known, name));
}

}  // namespace

std::string suggest(std::string_view name, std::vector<std::string> known) {
  std::sort(known.begin(), known.end());
  const std::u32string wanted = from_utf8(name);
  double most = 0;
  const std::string* nearest = nullptr;
  for (const std::string& candidate : known) {
    if (const double like = likeness(from_utf8(candidate), wanted); like >= kNear && like >= most) {
      most = like;
      nearest = &candidate;
    }
  }
  return nearest != nullptr ? "; did you mean " + in_quotes(*nearest) + "?" : "; known: " + joined(known, ", ");
}

}  // namespace talent
