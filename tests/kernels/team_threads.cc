// Several callers share a pool of threads as XLA's calls do, for ThreadSanitizer to watch (see sanitize.sh): every phase
// reads what other threads have written in the one before.
#include "team.h"

#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace {

constexpr int kThreads = 3, kCallers = 3, kCalls = 1000;
constexpr int64_t kMost = 64;

// First come, first served; at the end what is left is done.
class Pool {
 public:
  Pool() {
    for (int i = 0; i < kThreads; ++i) threads_.emplace_back([this] { serve(); });
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      closed_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  int64_t num_threads() const { return kThreads; }

  void Schedule(std::function<void()> task) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      tasks_.push_back(std::move(task));
    }
    changed_.notify_one();
  }

 private:
  void serve() {
    for (;;) {
      std::function<void()> task;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [this] { return closed_ || !tasks_.empty(); });
        if (tasks_.empty()) return;
        task = std::move(tasks_.front());
        tasks_.pop_front();
      }
      task();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  bool closed_ = false;
  std::vector<std::thread> threads_;
};

void call(Pool& pool, int number) {
  const int phases = 1 + number % 9;
  const int64_t count = 1 + number * 7 % kMost;
  std::vector<int64_t> values(count, 1), next(count);
  kangaroo::Team team(pool, kThreads + 1, phases);
  for (int phase = 0; phase < phases; ++phase) {
    team.run(count, [&](int64_t i) {
      for (int turn = 0; turn < 200; ++turn) next[i] = values[i] + values[(i + 1) % count];
    });
    std::swap(values, next);
  }
  for (int64_t value : values) {
    if (value == int64_t{1} << phases) continue;
    std::fprintf(stderr, "call %d: a chunk was left out, or done too early\n", number);
    std::exit(1);
  }
}

}  // namespace

int main() {
  Pool pool;
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([&pool, caller] {
      for (int number = 0; number < kCalls; ++number) call(pool, number + caller);
    });
  }
  for (std::thread& caller : callers) caller.join();
}
