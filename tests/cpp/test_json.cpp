// JSON that is read, and text that is none.
#include "json.h"

#include <string>

#include "check.h"

using talent::json::Malformed;
using talent::json::parse;
using talent::json::shown;
using talent::json::Value;

namespace {

std::string nested(size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); }

void check_refused(const std::string& text, const char* words) {
  try {
    parse(text);
    check::that(false, "%.40s to be refused", text.c_str());
  } catch (const Malformed& error) {
    check::that(std::string(error.what()).find(words) != std::string::npos, "\"%s\" of %.40s, received \"%s\"", words,
                text.c_str(), error.what());
  }
}

void check_shown(const char* text, const char* expected) {
  const std::string received = shown(parse(text));
  check::that(received == expected, "%.40s to be shown as %s, received %s", text, expected, received.c_str());
}

void check_numbers() {
  const auto integer = [](const char* text) { return parse(text).integer(); };
  check::that(integer("448") == 448 && integer("448.0") == 448 && integer("4.48e2") == 448, "448 to be 448");
  check::that(integer("-0") == 0 && integer("-0.0") == 0, "-0 to be 0");
  check::that(integer("9223372036854775807") == INT64_MAX && integer("-9223372036854775808") == INT64_MIN,
              "the limits of 64 bits to be read");
  check::that(!integer("9223372036854775808") && !integer("1e300") && !integer("0.5") && !integer("\"1\""),
              "no integer where there is none of 64 bits");
  check::that(parse("0.35").number() == 0.35 && parse("1e-7").number() == 1e-7 && parse("1e300").number() == 1e300 &&
                  parse("123456789012345678901234567890").number() == 123456789012345678901234567890.0,
              "numbers to keep their value");
}

void check_texts() {
  check_shown("null", "None");
  check_shown("[true, false]", "[True, False]");
  check_shown("448.0", "448");
  check_shown("0.0001", "0.0001");
  check_shown("0.00001", "1e-05");
  check_shown("12345.6789", "12345.6789");
  check_shown("1000000000000000000000000000000", "1000000000000000000000000000000");
  check_shown("12345678901234567890123456789012345678901", "123456789012345678...3456789012345678901");
  check_shown("1e300", "100000000000000005...6386865459400540160");
  check_shown("[1, 2, 3, 4, 5, 6, 7]", "[1, 2, 3, 4, 5, 6, ...]");
  check_shown(R"({"e": 1, "d": 2, "c": 3, "b": 4, "a": []})", "{'a': [], 'b': 4, 'c': 3, 'd': 2, ...}");
  check_shown("[[[[[[[1]]]]]]]", "[[[[[[[...]]]]]]]");
  check_shown(R"("it's")", R"("it's")");
  check_shown(R"("'\"\\\n\t\u0000\u007f\u00ad")", R"('\'"\\\n\t\x00\x7f\xad')");
  check_shown(R"("\u00e9\u200b\ud83d\ude00\u0378\ue000")", R"('é\u200b😀\u0378\ue000')");
  check_shown(R"("abcdefghijklmnopqrstuvwxyzabcdefgh")", "'abcdefghijkl...vwxyzabcdefgh'");
}

void check_objects() {
  const Value value = parse(R"({"a": 1, "b": 2, "a": 3})");
  check::that(value.members.size() == 2 && value.members[0].name == "a" && value.find("a")->integer() == 3 &&
                  value.find("c") == nullptr,
              "the last value at the first place");
  check::that(value == parse(R"({"b": 2.0, "a": 3})"), "the order of members not to matter");
  check::that(!(value == parse(R"({"b": 2, "a": true})")) && !(parse("1") == parse("true")) &&
                  !(parse("[1]") == parse("[1, 1]")) && !(parse("\"1\"") == parse("1")),
              "what differs to differ");
}

void check_malformed() {
  for (const char* text : {"", "{", "{\"a\": 1", "[1,]", "{\"a\" 1}", "01", "1.", "NaN", "-Infinity", "nul", "'a'",
                           "\"\n\"", "\"\\ud800\"", "\"\xff\"", "\xff\xfe{", "[] []", "// x\n1"}) {
    check_refused(text, "not JSON");
  }
  check_refused("[1, 1e999]", "a number too large");
  check_refused("[" + std::string(400, '9') + "]", "a number too large");
  check_refused("\xef\xbb\xbf{}", "a byte order mark");
  check_refused(std::string("{}\0{}", 5), "a zero byte");
  check_refused(nested(501), "deeper than 500");
  check_refused(std::string(200'000, '['), "deeper than 500");
  check::that(parse(nested(500)).is_list(), "500 levels to be read");
}

}  // namespace

int main() {
  check_numbers();
  check_texts();
  check_objects();
  check_malformed();
  return check::result();
}
