// How fast a checkpoint comes from the disk: the disk's own speed, copies out of mapped files as a loader
// makes them, and the same with what comes next read ahead.
//
//   load_bench [FOLDER] [ROUNDS]
//
// Without a folder it makes 2 GB of random bytes in the folder for temporary files. Before each run the
// system is told to forget the files.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/random.h"
#include "model/read_ahead.h"

namespace jevons {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kPiece = int64_t{8} << 20;  // as what goes to a device

std::vector<std::string> Files(const std::string& folder) {
  std::vector<std::string> out;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == ".safetensors") out.push_back(entry.path());
  }
  return out;
}

// 128 tensors of 16 MB in one file.
void WriteRandomFile(const std::string& folder) {
  constexpr int64_t kTensors = 128, kBytes = int64_t{16} << 20;
  std::string header = "{";
  for (int64_t i = 0; i < kTensors; ++i) {
    absl::StrAppend(&header, i > 0 ? "," : "", "\"t", 1000 + i, "\":{\"dtype\":\"F32\",\"shape\":[",
                    kBytes / 4, "],\"data_offsets\":[", i * kBytes, ",", (i + 1) * kBytes, "]}");
  }
  header += "}";
  std::ofstream out(folder + "/model.safetensors", std::ios::binary);
  const uint64_t size = header.size();
  out.write(reinterpret_cast<const char*>(&size), sizeof(size));
  out << header;
  Random random(1);
  std::vector<uint64_t> values(kBytes / sizeof(uint64_t));
  for (int64_t i = 0; i < kTensors; ++i) {
    for (uint64_t& value : values) value = random.Bits();
    out.write(reinterpret_cast<const char*>(values.data()), kBytes);
  }
}

// All files where that is allowed, else these, of which it may keep some.
void Forget(const std::string& folder) {
  sync();
  std::ofstream all("/proc/sys/vm/drop_caches");
  if (all << "1" << std::flush) return;
  for (const std::string& file : Files(folder)) {
    const int fd = open(file.c_str(), O_RDONLY);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
  }
}

// Of the disk alone: eight readers past the system's cache.
void ReadDirectly(const std::string& folder) {
  for (const std::string& file : Files(folder)) {
    const int fd = open(file.c_str(), O_RDONLY | O_DIRECT);
    const int64_t size = static_cast<int64_t>(fs::file_size(file));
    std::atomic<int64_t> next{0};
    std::vector<std::thread> readers;
    for (int i = 0; i < 8; ++i) {
      readers.emplace_back([&] {
        const std::unique_ptr<void, void (*)(void*)> data(std::aligned_alloc(4096, kPiece), free);
        for (int64_t at = next.fetch_add(kPiece); at < size; at = next.fetch_add(kPiece)) {
          if (pread(fd, data.get(), kPiece, at) < 0) std::perror("pread");
        }
      });
    }
    for (std::thread& reader : readers) reader.join();
    close(fd);
  }
}

void CopyAll(const Checkpoint& checkpoint, bool reads_ahead) {
  const std::vector<std::string> names = checkpoint.Names();
  ReadAhead ahead(checkpoint, reads_ahead ? names : std::vector<std::string>());
  std::vector<char> staging(kPiece);
  for (size_t i = 0; i < names.size(); ++i) {
    ahead.MoveTo(i, i + 64);
    const auto tensor = checkpoint.Find(names[i]);
    if (!tensor.ok()) continue;  // a type that nobody computes with
    const int64_t bytes = tensor->num_elements() * DTypeBytes(tensor->dtype);
    for (int64_t at = 0; at < bytes; at += kPiece) {
      std::memcpy(staging.data(), tensor->ptr<char>() + at, std::min(kPiece, bytes - at));
    }
    checkpoint.Release(names[i]);
  }
}

template <typename Fn>
double GigabytesPerSecond(const std::string& folder, int64_t bytes, Fn fn) {
  Forget(folder);
  const auto start = std::chrono::steady_clock::now();
  fn();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  return static_cast<double>(bytes) / 1e9 / seconds.count();
}

absl::Status Run(const std::string& folder, int num_rounds) {
  int64_t bytes = 0;
  for (const std::string& file : Files(folder)) bytes += static_cast<int64_t>(fs::file_size(file));
  for (int round = 0; round < num_rounds; ++round) {
    const double disk = GigabytesPerSecond(folder, bytes, [&] { ReadDirectly(folder); });
    double copied[2];
    // By turns, for what lies below the system may remember too.
    for (const bool second : {false, true}) {
      const bool ahead = second == (round % 2 == 0);
      ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(folder));
      copied[ahead] = GigabytesPerSecond(folder, bytes, [&] { CopyAll(*checkpoint, ahead); });
    }
    std::printf(
        "{\"gigabytes\": %.2f, \"disk_gb_s\": %.2f, \"copied_gb_s\": %.2f, "
        "\"copied_ahead_gb_s\": %.2f, \"of_disk\": %.2f, \"of_disk_ahead\": %.2f}\n",
        static_cast<double>(bytes) / 1e9, disk, copied[0], copied[1], copied[0] / disk,
        copied[1] / disk);
    std::fflush(stdout);
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  std::string folder = argc > 1 ? argv[1] : "";
  const bool is_made = folder.empty();
  if (is_made) {
    folder = fs::temp_directory_path() / absl::StrCat("load_bench_", getpid());
    fs::create_directory(folder);
    WriteRandomFile(folder);
  }
  const absl::Status status = Run(folder, argc > 2 ? std::atoi(argv[2]) : 3);
  if (is_made) fs::remove_all(folder);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace jevons

int main(int argc, char** argv) { return jevons::Main(argc, argv); }
