// Where torch's large CPU tensors lie: one range of addresses, given out first fit.
//
// A training step allocates and frees the same few hundred large tensors again and again. The C
// library's heap keeps small long-lived blocks between them, so that it grows to nearly twice what
// lives; first fit in a range of their own stays within a few percent. Pages are huge ones and kept,
// so that a step does not wait for the kernel to clear them.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

#include <cstdint>
#include <map>
#include <mutex>

#include <pthread.h>
#include <sys/mman.h>

namespace {

constexpr size_t LARGE = size_t(1) << 18;  // smaller tensors go to the heap
constexpr size_t GRAIN = 4096;
constexpr size_t HUGE_PAGE = size_t(1) << 21;

// Free blocks by address, none beside another, and the sizes of those given out.
class Arena {
public:
  bool reserve(size_t size) {
    void *at = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) return false;
    const uintptr_t start = uintptr_t(at);
    begin_ = (start + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    end_ = start + size;
    madvise(reinterpret_cast<void *>(begin_), end_ - begin_, MADV_HUGEPAGE);
    free_[begin_] = end_ - begin_;
    return true;
  }

  bool holds(const void *data) const {
    return uintptr_t(data) >= begin_ && uintptr_t(data) < end_;
  }

  // Null where nothing that large is free.
  void *take(size_t size) {
    size = (size + GRAIN - 1) / GRAIN * GRAIN;
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto at = free_.begin(); at != free_.end(); ++at) {
      if (at->second < size) continue;
      const auto [start, length] = *at;
      free_.erase(at);
      if (length > size) free_[start + size] = length - size;
      taken_[start] = size;
      return reinterpret_cast<void *>(start);
    }
    return nullptr;
  }

  void give_back(void *data) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto block = taken_.find(uintptr_t(data));
    uintptr_t start = block->first;
    size_t size = block->second;
    taken_.erase(block);
    const auto next = free_.lower_bound(start);
    if (next != free_.end() && next->first == start + size) {
      size += next->second;
      free_.erase(next);
    }
    const auto after = free_.lower_bound(start);
    if (after != free_.begin()) {
      const auto before = std::prev(after);
      if (before->first + before->second == start) {
        before->second += size;
        return;
      }
    }
    free_[start] = size;
  }

  // Gives the pages of free blocks back to the system.
  void trim() {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto &[start, size] : free_)
      madvise(reinterpret_cast<void *>(start), size, MADV_DONTNEED);
  }

  std::mutex &mutex() { return mutex_; }

private:
  std::mutex mutex_;
  uintptr_t begin_ = 0, end_ = 0;
  std::map<uintptr_t, size_t> free_, taken_;
};

// Never destroyed: tensors may be freed while the process ends.
Arena &arena() {
  static Arena *only = new Arena;
  return *only;
}

void give_back(void *data) {
  if (!data) return;
  c10::profiledCPUMemoryReporter().Delete(data);
  if (arena().holds(data))
    arena().give_back(data);
  else
    c10::free_cpu(data);
}

struct ArenaAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    void *data = size >= LARGE ? arena().take(size) : nullptr;
    if (!data) data = c10::alloc_cpu(size);
    c10::profiledCPUMemoryReporter().New(data, size);
    return {data, data, &give_back, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void *to, const void *from, std::size_t count) const final {
    default_copy_data(to, from, count);
  }
};

} // namespace

// Torch's CPU tensors come from the arena from now on; 0 where the addresses cannot be had.
extern "C" int arena_install(size_t size) {
  static ArenaAllocator allocator;
  if (!arena().reserve(size)) return 0;
  // A child process must not inherit a lock that nobody in it holds.
  pthread_atfork([] { arena().mutex().lock(); }, [] { arena().mutex().unlock(); },
                 [] { arena().mutex().unlock(); });
  c10::SetCPUAllocator(&allocator, 1);
  return 1;
}

extern "C" void arena_trim() { arena().trim(); }
