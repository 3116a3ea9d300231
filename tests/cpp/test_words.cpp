// How a sentence is cleaned and split.
#include "words.h"

#include <ctime>
#include <string>

#include "check.h"
#include "html_unescape.h"
#include "utf8.h"

namespace {

void check_equal(const char* what, const std::string& text, const std::string& received, const std::string& expected) {
  check::that(received == expected, "%s of \"%s\" to be \"%s\", received \"%s\"", what, text.c_str(), expected.c_str(),
              received.c_str());
}

void check_unescaped(const std::string& text, const std::string& expected) {
  check_equal("html_unescape", text, talent::to_utf8(talent::html_unescape(talent::from_utf8(text))), expected);
}

void check_clean(const std::string& text, const std::string& expected) {
  check_equal("clean", text, talent::to_utf8(talent::clean(talent::from_utf8(text))), expected);
}

void check_split(const std::string& text, const std::string& expected) {
  const std::u32string characters = talent::from_utf8(text);
  std::string words;
  for (const auto& word : talent::split_words(characters)) {
    words += (words.empty() ? "" : "|") + talent::to_utf8(word);
  }
  check_equal("split_words", text, words, expected);
}

void check_entities() {
  check_unescaped("&amp;&lt;&gt;&quot;&apos;", "&<>\"'");
  check_unescaped("&amp &ampx &notit; &notin; &noti", "& &x ¬it; ∉ ¬i");
  check_unescaped("&#65;&#x42;&#X43&#68 &#0065;", "ABCD A");
  check_unescaped("&#128;&#0;&#xd800;&#x110000;&#99999999999999999999;&#x1;&#xfffe;", "€\ufffd\ufffd\ufffd\ufffd");
  check_unescaped("&;&#;&#x;&# & &&amp;&unknown; &", "&;&#;&#x;&# & &&&unknown; &");
  check_unescaped("&NotEqualTilde;&CounterClockwiseContourIntegral;", "≂̸∳");
  check_unescaped("&CounterClockwiseContourIntegralx", "&CounterClockwiseContourIntegralx");
  check_unescaped("&ampäöü😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀&lt;",
                  "&äöü😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀<");
}

void check_cleaned() {
  check_clean("The RED Mug", "the red mug");
  check_clean("&amp;amp;lt;", "&lt;");  // twice, not three times
  check_clean("ΜΕΓΑΛΟΣ ΔΡΟΜΟΣ Σ", "μεγαλος δρομος σ");
  check_clean("İ I", "i\u0307 i");
  check_clean("cafe\u0301", "caf\u00e9");
  check_clean("\ufb01ne \u0133 \uff26\uff35\u3000\uff11", "fine ij fu 1");
  check_clean("\u201cit\u2019s\u201d", "\"it's\"");
  check_clean(std::string("a\0b\x07\x7f", 5) + "\ufeff\u206a", "ab");
}

void check_words() {
  check_split("the red  mug", "the|red|mug");
  check_split("it's they're i'll 'tis o'clock", "it|'s|they|'re|i|'ll|'t|is|o|'|clock");
  check_split("x'\u017f 'v ''s", "x|'\u017f|'|v|''|s");
  check_split("no. 42, 3.5%", "no|.|4|2|,|3|.|5|%");
  check_split("²Ⅷ١", "²|Ⅷ|١");
  check_split("\u00a0\u2009 \u200b", "\u200b");
  check_split("", "");
}

void check_bytes() {
  const std::string damaged = "a\xff\xc3(\xe2\x82z\xf0\x9f\x98\xed\xa0\x80\xc0\x80";
  check_equal("from_utf8", "damaged text", talent::to_utf8(talent::from_utf8(damaged)),
              "a\ufffd\ufffd(\ufffdz\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd");
}

// Marks of two classes in turn, which ICU sorts by inserting each before all of the other class.
void check_many_marks() {
  std::u32string text = U"a";
  for (int count = 0; count < 100'000; ++count) {
    text += count % 2 == 0 ? U'\u0308' : U'\u0323';
  }
  const std::clock_t begin = std::clock();
  const std::u32string cleaned = talent::clean(text);
  const double seconds = static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;  // of the processor
  check::that(cleaned.substr(0, 2) == U"\u1ea1\u0323" && cleaned.size() == text.size() - 1,
              "the marks in order, the first composed");
  check::that(seconds < 1, "100,000 marks to be sorted in less than 1 s, received %g", seconds);
}

}  // namespace

int main() {
  check_entities();
  check_cleaned();
  check_words();
  check_bytes();
  check_many_marks();
  return check::result();
}
