// Threads that share the work of one call: the caller, and helpers from XLA's own pool.
//
// A call is a sequence of phases, each so many chunks that may run in any order; the next phase begins when the last
// chunk is done. Helpers take chunks where they find some and are never waited for before they have taken one, so that
// a pool that is busy elsewhere costs time and no deadlock. No result depends on who computes which chunk.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace kangaroo {

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// XLA runs programs with subnormals as zeros; helpers have to do as their caller does.
class FloatingPointMode {
 public:
#if defined(__x86_64__)
  static unsigned current() { return _mm_getcsr(); }
  explicit FloatingPointMode(unsigned mode) : before_(_mm_getcsr()) { _mm_setcsr(mode); }
  ~FloatingPointMode() { _mm_setcsr(before_); }
#else
  static unsigned current() { return 0; }
  explicit FloatingPointMode(unsigned) : before_(0) {}
#endif
 private:
  unsigned before_;
};

class Team {
 public:
  // `pool`: xla::ffi::ThreadPool, or what works like it. `most`: threads that the work is worth, the caller among them.
  // `phases`: upper bound of calls to `run`.
  template <class Pool>
  Team(Pool& pool, int64_t most, int64_t phases) {
    const int64_t threads = std::min<int64_t>(pool.num_threads(), most);
    if (threads < 2) return;
    size_ = threads;
    shared_ = std::make_shared<Shared>(phases);
    for (int64_t i = 1; i < threads; ++i) {
      pool.Schedule([shared = shared_, mode = FloatingPointMode::current(), caller = std::this_thread::get_id()] {
        // A pool whose queue is full runs a task at once, in the thread that brings it: that one is no helper.
        if (std::this_thread::get_id() == caller) return;
        FloatingPointMode as_caller(mode);
        help(*shared);
      });
    }
  }

  ~Team() {
    if (shared_) shared_->open.store(kClosed, std::memory_order_release);
  }

  // Threads that are asked to take part, the caller among them.
  int64_t size() const { return size_; }

  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  // Call body(chunk) for all chunks in [0, count), and return when all are done.
  template <class Body>
  void run(int64_t count, Body&& body) {
    if (!shared_ || count < 2) {
      for (int64_t chunk = 0; chunk < count; ++chunk) body(chunk);
      return;
    }
    Phase& phase = shared_->phases[opened_];
    phase.count = count;
    phase.context = &body;
    phase.call = [](void* context, int64_t chunk) { (*static_cast<std::remove_reference_t<Body>*>(context))(chunk); };
    shared_->open.store(++opened_, std::memory_order_release);
    phase.work();
    wait([&] { return phase.done.load(std::memory_order_acquire) == count; });
  }

 private:
  static constexpr int64_t kClosed = INT64_MAX;

  struct alignas(64) Phase {
    std::atomic<int64_t> next{0};
    int64_t count = 0;
    void* context = nullptr;
    void (*call)(void*, int64_t) = nullptr;
    alignas(64) std::atomic<int64_t> done{0};

    // Whoever has taken a chunk below `count` is waited for, so that `context` is alive while it is used.
    void work() noexcept {  // Unwinding would leave helpers with a context that is gone.
      for (;;) {
        const int64_t chunk = next.fetch_add(1, std::memory_order_relaxed);
        if (chunk >= count) return;
        call(context, chunk);
        done.fetch_add(1, std::memory_order_release);
      }
    }
  };

  struct Shared {
    explicit Shared(int64_t count) : size(count), phases(new Phase[count]) {}
    const int64_t size;
    std::unique_ptr<Phase[]> phases;
    alignas(64) std::atomic<int64_t> open{0};  // Phases opened so far, or kClosed.
  };

  template <class Condition>
  static void wait(Condition&& condition) {
    for (int64_t turn = 0; !condition(); ++turn) {
      if (turn < 4096) {
        pause();
      } else {
        std::this_thread::yield();
      }
    }
  }

  static void help(Shared& shared) {
    for (int64_t index = 0; index < shared.size; ++index) {
      int64_t open = 0;
      wait([&] { return (open = shared.open.load(std::memory_order_acquire)) > index; });
      if (open == kClosed) return;
      shared.phases[index].work();
    }
  }

  std::shared_ptr<Shared> shared_;
  int64_t opened_ = 0;
  int64_t size_ = 1;
};

}  // namespace kangaroo
