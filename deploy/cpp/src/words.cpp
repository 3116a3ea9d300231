#include "words.h"

#include <unicode/locid.h>
#include <unicode/normalizer2.h>
#include <unicode/uchar.h>
#include <unicode/uniset.h>
#include <unicode/unistr.h>

#include <algorithm>
#include <memory>
#include <new>
#include <stdexcept>

#include "html_unescape.h"

namespace talent {
namespace {

// One character for several: with the widths all that Python's `_clean` rewrites and NFC does not.
constexpr std::u32string_view kLigatures =
    U"\u0132\u0133\u0149\u01f1\u01f2\u01f3\u01c4\u01c5\u01c6\u01c7\u01c8\u01c9\u01ca\u01cb\u01cc"
    U"\ufb00\ufb01\ufb02\ufb03\ufb04\ufb05\ufb06";

constexpr char32_t kFirstMark = 0x300;

enum class Kind { kSpace, kLetter, kNumber, kOther };

// For what ICU answers with a status: it has no other reasons than these.
void check(UErrorCode status) {
  if (status == U_MEMORY_ALLOCATION_ERROR) {
    throw std::bad_alloc();
  }
  if (U_FAILURE(status)) {
    throw std::runtime_error(std::string("ICU: ") + u_errorName(status));
  }
}

std::u32string characters_of(const icu::UnicodeString& text) {
  if (text.isBogus()) {  // ICU's word for memory that was not to be had
    throw std::bad_alloc();
  }
  std::u32string characters(static_cast<size_t>(text.countChar32()), U'\0');
  UErrorCode status = U_ZERO_ERROR;
  text.toUTF32(reinterpret_cast<UChar32*>(characters.data()), static_cast<int32_t>(characters.size()), status);
  check(status);
  return characters;
}

icu::UnicodeString unicode_string(std::u32string_view text) {
  return icu::UnicodeString::fromUTF32(reinterpret_cast<const UChar32*>(text.data()),
                                       static_cast<int32_t>(text.size()));
}

bool is_rewritten(char32_t character) {
  return character == U'\u3000' || (character >= U'\uff01' && character < U'\ufff0') ||
         kLigatures.find(character) != kLigatures.npos;
}

// Ligatures and other widths in plain characters.
std::u32string rewritten(std::u32string_view text) {
  UErrorCode status = U_ZERO_ERROR;
  const icu::Normalizer2* compatible = icu::Normalizer2::getNFKCInstance(status);
  check(status);
  std::u32string plain;
  plain.reserve(text.size());
  for (const char32_t character : text) {
    if (is_rewritten(character)) {
      plain += characters_of(compatible->normalize(unicode_string({&character, 1}), status));
      check(status);
    } else {
      plain += character;
    }
  }
  return plain;
}

// NFC of Unicode 9: that of the `tokenizers` library in Python, whatever the age of ICU. Marks that came later are no
// marks to it, so that those around them keep their order.
class Composing {
 public:
  Composing() {
    UErrorCode status = U_ZERO_ERROR;
    known_.applyPattern(u"[:age=9.0:]", status).freeze();
    const icu::Normalizer2* whole = icu::Normalizer2::getNFCInstance(status);
    check(status);
    nfc_ = std::make_unique<icu::FilteredNormalizer2>(*whole, known_);
  }
  const icu::Normalizer2& nfc() const { return *nfc_; }

 private:
  icu::UnicodeSet known_;
  std::unique_ptr<icu::FilteredNormalizer2> nfc_;
};

const icu::Normalizer2& composing() {
  static const Composing made;
  return made.nfc();
}

// Combining marks in the order that composing gives them anyway: ICU sorts a long run of them in quadratic time.
void sort_marks(std::u32string& text) {
  const auto combining_class = [](char32_t character) {
    return composing().getCombiningClass(static_cast<UChar32>(character));
  };
  const auto is_mark = [&](char32_t character) {
    return character >= kFirstMark && combining_class(character) != 0;
  };
  for (auto begin = text.begin(); (begin = std::find_if(begin, text.end(), is_mark)) != text.end();) {
    const auto end = std::find_if_not(begin, text.end(), is_mark);
    std::stable_sort(begin, end, [&](char32_t one, char32_t other) {
      return combining_class(one) < combining_class(other);
    });
    begin = end;
  }
}

std::u32string composed_in_lower_case(std::u32string text) {
  sort_marks(text);
  UErrorCode status = U_ZERO_ERROR;
  // Root: not Turkish. What the normalizer lowers after composing is in lower case already.
  const icu::UnicodeString composed =
      composing().normalize(unicode_string(text).toLower(icu::Locale::getRoot()), status);
  check(status);
  return characters_of(composed);
}

char32_t straight(char32_t character) {
  if (character == U'\u02bc' || (character >= U'\u2018' && character <= U'\u201b')) {
    return U'\'';
  }
  return character >= U'\u201c' && character <= U'\u201f' ? U'"' : character;
}

bool is_removed(char32_t c) {
  return c <= 0x08 || c == 0x0b || (c >= 0x0e && c <= 0x1f) || c == 0x7f || (c >= 0x206a && c <= 0x206f) ||
         c == 0xfeff || (c >= 0xfff9 && c <= 0xfffc);
}

Kind kind_of(char32_t character) {
  const auto code = static_cast<UChar32>(character);
  const uint32_t category = U_MASK(u_charType(code));
  if ((category & U_GC_L_MASK) != 0) {
    return Kind::kLetter;
  }
  if ((category & U_GC_N_MASK) != 0) {
    return Kind::kNumber;
  }
  return u_isUWhiteSpace(code) ? Kind::kSpace : Kind::kOther;
}

// Length of 's, 't, 're, 've, 'm, 'll or 'd at the front of a text, or 0. The long s is an s to a pattern that ignores
// case.
size_t contraction(std::u32string_view text) {
  if (text.size() < 2 || text[0] != U'\'') {
    return 0;
  }
  if (std::u32string_view(U"s\u017ftmd").find(text[1]) != std::u32string_view::npos) {
    return 2;
  }
  const std::u32string_view two = text.substr(1, 2);
  return two == U"re" || two == U"ve" || two == U"ll" ? 3 : 0;
}

}  // namespace

std::u32string clean(std::u32string_view text) {
  std::u32string cleaned = composed_in_lower_case(rewritten(html_unescape(html_unescape(text))));
  cleaned.erase(std::remove_if(cleaned.begin(), cleaned.end(), is_removed), cleaned.end());
  std::transform(cleaned.begin(), cleaned.end(), cleaned.begin(), straight);
  return cleaned;
}

std::vector<std::u32string_view> split_words(std::u32string_view text) {
  std::vector<std::u32string_view> words;
  while (!text.empty()) {
    const Kind kind = kind_of(text.front());
    size_t size = contraction(text);
    if (size == 0) {
      size = 1;
      while (kind != Kind::kNumber && size < text.size() && kind_of(text[size]) == kind) {
        ++size;
      }
    }
    if (kind != Kind::kSpace) {
      words.push_back(text.substr(0, size));
    }
    text.remove_prefix(size);
  }
  return words;
}

}  // namespace talent
