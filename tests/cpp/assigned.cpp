// The code points that libtalent's Unicode data knows, in hexadecimal, a line for each range: first last.
#include <unicode/uchar.h>

#include <cstdio>

int main() {
  for (UChar32 first = 0; first <= UCHAR_MAX_VALUE;) {
    UChar32 end = first;
    while (end <= UCHAR_MAX_VALUE && u_isdefined(end)) {
      ++end;
    }
    if (end > first) {
      std::printf("%x %x\n", static_cast<unsigned>(first), static_cast<unsigned>(end - 1));
    }
    first = end + 1;
  }
}
