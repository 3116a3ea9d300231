// Many may be inside at once; who closes it waits until all of them have left: deploy/runtime/gate.py.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>

namespace talent {

// Open from the start.
class Gate {
 public:
  // what: names what it leads to, for the error of those who come too late.
  explicit Gate(std::string what);

  // Somebody is inside as long as this lives.
  class Inside {
   public:
    explicit Inside(Gate& gate);  // throws std::runtime_error where the gate is closed
    ~Inside();
    Inside(const Inside&) = delete;
    Inside& operator=(const Inside&) = delete;

   private:
    Gate& gate_;
  };

  // Let nobody in any more, and wait until nobody is inside. Must not be called from inside.
  void close();

 private:
  const std::string what_;
  std::mutex lock_;
  std::condition_variable changed_;
  int64_t inside_ = 0;
  bool open_ = true;
};

}  // namespace talent
