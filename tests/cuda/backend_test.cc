// What the CUDA backend promises beside the results of its ops: memory, copies, packed weights,
// refusals.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cuda/cuda_weight.h"
#include "tests/cuda/backend_fixture.h"
#include "tests/cuda/pack_host.h"

namespace jevons {
namespace {

using absl::StatusCode;
constexpr int64_t kSlotBytes = 8 << 20;  // of the staging ring
constexpr int kSlots = 4;

std::vector<uint8_t> RandomBytes(int64_t size, uint64_t seed) {
  Random random(seed);
  std::vector<uint8_t> out(static_cast<size_t>(size) + sizeof(uint64_t));
  for (size_t i = 0; i + sizeof(uint64_t) <= out.size(); i += sizeof(uint64_t)) {
    const uint64_t bits = random.Bits();
    std::memcpy(out.data() + i, &bits, sizeof(bits));
  }
  out.resize(static_cast<size_t>(size));
  return out;
}

TEST_F(CudaBackendTest, AllocateGivesAlignedZeros) {
  for (int64_t size : {int64_t{0}, int64_t{1}, int64_t{63}, int64_t{4096}, kSlotBytes + 1}) {
    SCOPED_TRACE(size);
    const std::unique_ptr<Buffer> buffer = Allocate(size);
    EXPECT_EQ(buffer->bytes(), size);
    ASSERT_NE(buffer->data(), nullptr);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % 64, 0u);
    EXPECT_EQ(ReadBack(Bytes(buffer->data(), size)), std::vector<uint8_t>(size, 0));
  }
}

TEST_F(CudaBackendTest, WhatGoesToTheDeviceComesBack) {
  for (int64_t size : {int64_t{0}, int64_t{1}, kSlotBytes - 1, kSlotBytes, kSlotBytes + 1,
                       (kSlots + 1) * kSlotBytes + 3}) {
    SCOPED_TRACE(size);
    std::vector<uint8_t> host = RandomBytes(size, 1);
    auto tensor = backend_->Upload(Bytes(host));
    ASSERT_TRUE(tensor.ok()) << tensor.status();
    EXPECT_EQ(ReadBack(tensor->view), host);
    std::vector<uint8_t> other = RandomBytes(size, 2);
    ASSERT_TRUE(backend_->Write(tensor->view, Bytes(other)).ok());
    EXPECT_EQ(ReadBack(tensor->view), other);
  }
}

TEST_F(CudaBackendTest, HostMemoryMayChangeAfterUploadAndWrite) {
  for (int64_t size : {int64_t{100}, kSlotBytes + 5, (kSlots + 1) * kSlotBytes}) {
    const std::vector<uint8_t> want = RandomBytes(size, 1);
    std::vector<uint8_t> host = want;
    auto uploaded = backend_->Upload(Bytes(host));
    ASSERT_TRUE(uploaded.ok()) << uploaded.status();
    std::fill(host.begin(), host.end(), 0);
    EXPECT_EQ(ReadBack(uploaded->view), want);
    const std::unique_ptr<Buffer> buffer = Allocate(size);
    host = want;
    ASSERT_TRUE(backend_->Write(Bytes(buffer->data(), size), Bytes(host)).ok());
    std::fill(host.begin(), host.end(), 0);
    EXPECT_EQ(ReadBack(Bytes(buffer->data(), size)), want);
  }
}

TEST_F(CudaBackendTest, ManySmallWritesKeepTheirOrder) {
  const std::unique_ptr<Buffer> buffer = Allocate(4);
  int32_t value = 0;
  const TensorView host(&value, DType::kI32, {1});
  const TensorView device(buffer->data(), DType::kI32, {1});
  for (value = 0; value < 50; ++value) ASSERT_TRUE(backend_->Write(device, host).ok());
  ASSERT_TRUE(backend_->Read(host, device).ok());
  EXPECT_EQ(value, 49);
}

// More than there are slots to stage them in: one that is not read yet is waited for, never changed.
TEST_F(CudaBackendTest, WritesThatAreNotDoneKeepTheirBytesHoweverManyFollow) {
  constexpr int64_t kWrites = 60;
  const std::unique_ptr<Buffer> buffer = Allocate(kWrites * 4096);
  std::vector<uint8_t> want;
  for (int64_t i = 0; i < kWrites; ++i) {
    // Growing, so that the slots must grow too while copies are under way.
    std::vector<uint8_t> host(static_cast<size_t>(i < 30 ? 64 : 4096), static_cast<uint8_t>(i + 1));
    const TensorView device = Bytes(static_cast<uint8_t*>(buffer->data()) + want.size(),
                                    static_cast<int64_t>(host.size()));
    ASSERT_TRUE(backend_->Write(device, Bytes(host)).ok());
    want.insert(want.end(), host.begin(), host.end());
  }
  EXPECT_EQ(ReadBack(Bytes(buffer->data(), static_cast<int64_t>(want.size()))), want);
}

TEST_F(CudaBackendTest, AReadbackWaitsForItsCopyAloneAndKeepsItsBytes) {
  const std::unique_ptr<Buffer> buffer = Allocate(64);
  auto readback = backend_->NewReadback(64);
  ASSERT_TRUE(readback.ok()) << readback.status();
  for (int n : {1, 5}) {
    std::vector<uint8_t> first(64, static_cast<uint8_t>(n));
    std::vector<uint8_t> later(64, 99);
    ASSERT_TRUE(backend_->Write(Bytes(buffer->data(), 64), Bytes(first)).ok());
    ASSERT_TRUE((*readback)->Start(Bytes(buffer->data(), 64)).ok());
    const int64_t synchronised = emu::NumCalls(emu::CallKind::kStream);
    ASSERT_TRUE(backend_->Write(Bytes(buffer->data(), 64), Bytes(later)).ok());
    const auto bytes = (*readback)->Wait();
    ASSERT_TRUE(bytes.ok()) << bytes.status();
    EXPECT_EQ(std::memcmp(*bytes, first.data(), 64), 0);
    EXPECT_EQ(emu::NumCalls(emu::CallKind::kStream), synchronised);
    EXPECT_EQ(ReadBack(Bytes(buffer->data(), 64)), later);
    EXPECT_EQ(std::memcmp(*bytes, first.data(), 64), 0);
  }
  ExpectError((*readback)->Start(Bytes(buffer->data(), 65)), StatusCode::kInvalidArgument,
              {"at most 64 bytes", "65"});
  ExpectError(backend_->NewReadback(int64_t{1} << 60), StatusCode::kResourceExhausted,
              {"1152921504606846976"});
}

// What is under way when a readback goes is waited for: its memory is written until then.
TEST_F(CudaBackendTest, AReadbackMayGoWhileItsCopyIsUnderWay) {
  const std::unique_ptr<Buffer> buffer = Allocate(64);
  for (int i = 0; i < 20; ++i) {
    auto readback = backend_->NewReadback(64);
    ASSERT_TRUE(readback.ok()) << readback.status();
    ASSERT_TRUE((*readback)->Start(Bytes(buffer->data(), 64)).ok());
  }
  EXPECT_EQ(ReadBack(Bytes(buffer->data(), 64)), std::vector<uint8_t>(64, 0));
}

TEST_F(CudaBackendTest, SizesThatCannotBeAreRefused) {
  ExpectError(backend_->Allocate(-1), StatusCode::kInvalidArgument, {"Allocate", "-1"});
  ExpectError(backend_->Allocate(int64_t{1} << 40), StatusCode::kResourceExhausted,
              {"Allocate", "1099511627776"});
  ExpectError(backend_->Allocate(INT64_MAX), StatusCode::kResourceExhausted,
              {"9223372036854775807"});
  EXPECT_EQ(ReadBack(Bytes(Allocate(100)->data(), 100)), std::vector<uint8_t>(100, 0));
}

TEST_F(CudaBackendTest, MemoryThatIsFreedCanBeTakenAgain) {
  backend_ = nullptr;
  emu::SetDevice({.memory_bytes = 1 << 20});
  backend_ = Create({});
  const int64_t available = backend_->AvailableBytes();
  {
    const std::unique_ptr<Buffer> most = Allocate(available - 1000);
    EXPECT_LE(backend_->AvailableBytes(), 1000);
    ExpectError(backend_->Allocate(2000), StatusCode::kResourceExhausted, {"2000"});
  }
  EXPECT_EQ(backend_->AvailableBytes(), available);
  Allocate(available - 1000);
}

TEST_F(CudaBackendTest, CopiesNeedLikeContiguousTensors) {
  std::vector<uint8_t> host(64);
  const std::unique_ptr<Buffer> buffer = Allocate(64);
  const TensorView rows(host.data(), DType::kU8, {8, 8});
  ExpectError(backend_->Upload(rows.Columns(0, 4)), StatusCode::kInvalidArgument,
              {"Upload", "contiguous", "u8 [8, 4]"});
  const TensorView device = Bytes(buffer->data(), 64);
  ExpectError(backend_->Write(device, Bytes(host.data(), 63)), StatusCode::kInvalidArgument,
              {"u8 [64]", "u8 [63]"});
  ExpectError(backend_->Read(Bytes(host.data(), 63), device), StatusCode::kInvalidArgument,
              {"u8 [63]", "u8 [64]"});
  ExpectError(backend_->Write(TensorView(buffer->data(), DType::kI32, {16}), Bytes(host)),
              StatusCode::kInvalidArgument, {"i32 [16]", "u8 [64]"});
  ExpectError(backend_->Write(device, rows.Columns(0, 4)), StatusCode::kInvalidArgument, {});
}

TEST_F(CudaBackendTest, TypesThatAnOpDoesNotTakeAreNamed) {
  const DeviceTensor f32 = Normal(DType::kF32, {2, 32});
  const DeviceTensor bf16 = Normal(DType::kBF16, {2, 32});
  const DeviceTensor f16 = Normal(DType::kF16, {2, 32});
  const DeviceTensor norm = Normal(DType::kF32, {32});
  const auto weight = Pack(*backend_, {{32}}, 32);
  ExpectError(backend_->Linear({f32.view, weight.get(), {}, f32.view}),
              StatusCode::kInvalidArgument, {"Linear", "x", "bf16", "f32 [2, 32]"});
  ExpectError(backend_->Linear({bf16.view, weight.get(), {}, f16.view}),
              StatusCode::kInvalidArgument, {"Linear", "out", "f16 [2, 32]"});
  ExpectError(backend_->RmsNorm({f16.view, {}, norm.view, 1e-6f, f32.view}),
              StatusCode::kInvalidArgument, {"RmsNorm", "x", "f16 [2, 32]"});
  ExpectError(backend_->SiluMul({f16.view, Normal(DType::kF32, {2, 16}).view}),
              StatusCode::kInvalidArgument, {"SiluMul", "gate_up", "f16 [2, 32]"});
  ExpectError(backend_->GatherRows(
                  {bf16.view, Upload(IntTensor({1})).view, Normal(DType::kF32, {1, 32}).view}),
              StatusCode::kInvalidArgument, {"GatherRows", "out", "bf16", "f32 [1, 32]"});
  ExpectError(backend_->Embed({Normal(DType::kF32, {2}).view, f32.view, f32.view}),
              StatusCode::kInvalidArgument, {"Embed", "ids", "i32", "f32 [2]"});
}

TEST_F(CudaBackendTest, AttentionTakesBf16Alone) {
  const DeviceTensor positions = Upload(IntTensor({0, 1}));
  const DeviceTensor cache = Normal(DType::kBF16, {4, 8, 32});
  const DeviceTensor slots = Upload(TestTensor(DType::kI64, {2}));
  const auto store = [&](DType kv, const DeviceTensor& to) {
    return backend_->MlaStoreKv({Normal(kv, {2, 32}).view, Normal(DType::kF32, {24}).view, 1e-6f,
                                 positions.view, Normal(DType::kF32, {16, 8}).view, slots.view,
                                 to.view});
  };
  ExpectError(store(DType::kF32, cache), StatusCode::kInvalidArgument,
              {"MlaStoreKv", "kv must be bf16", "f32 [2, 32]"});
  ExpectError(store(DType::kBF16, Normal(DType::kF32, {4, 8, 32})), StatusCode::kInvalidArgument,
              {"MlaStoreKv", "cache", "bf16", "f32 [4, 8, 32]"});
  const auto attend = [&](DType q, DType out) {
    return backend_->MlaAttention({Normal(q, {2, 3, 32}).view, cache.view,
                                   Upload(IntTensor({0})).view.SplitLast(1),
                                   Upload(IntTensor({0, 2})).view, Upload(IntTensor({2})).view, 1,
                                   Normal(out, {2, 3, 24}).view});
  };
  ExpectError(attend(DType::kF32, DType::kBF16), StatusCode::kInvalidArgument,
              {"MlaAttention", "q and out must be bf16", "f32 [2, 3, 32]"});
  ExpectError(attend(DType::kBF16, DType::kF32), StatusCode::kInvalidArgument,
              {"MlaAttention", "f32 [2, 3, 24]"});
}

TEST_F(CudaBackendTest, ABlockThatDoesNotExistGivesNanInTheRowsThatSeeIt) {
  // Positions 7, 8 and 9 of ten, of which the last two lie in the second block.
  for (const DeviceTensor& cache :
       {Normal(DType::kBF16, {1, 8, 32}),
        Upload(TestTensor(DType::kU8, {1, 8, 64}).Fill(std::vector<uint8_t>(8 * 64)))}) {
    for (int32_t block : {-1, 1, 1 << 30}) {
      const DeviceTensor out = Normal(DType::kBF16, {3, 2, 24});
      const absl::Status status = backend_->MlaAttention(
          {Normal(DType::kBF16, {3, 2, 32}).view, cache.view,
           Upload(IntTensor({0, block})).view.SplitLast(2), Upload(IntTensor({0, 3})).view,
           Upload(IntTensor({10})).view, 1, out.view});
      ASSERT_TRUE(status.ok()) << status;
      const std::vector<uint8_t> bytes = ReadBack(out.view);
      for (int64_t i = 0; i < out.view.num_elements(); ++i) {
        uint16_t bits = 0;
        std::memcpy(&bits, bytes.data() + 2 * i, sizeof(bits));
        ASSERT_EQ(std::isnan(Bf16ToFloat(bits)), i >= 2 * 24) << "block " << block << " at " << i;
      }
    }
  }
}

TEST_F(CudaBackendTest, AWeightOfAnotherBackendOrUseIsRefused) {
  const std::unique_ptr<Backend> cpu = CreateReferenceBackend();
  const DeviceTensor x = Normal(DType::kBF16, {2, 32});
  const DeviceTensor heads = Normal(DType::kBF16, {2, 1, 32});
  const DeviceTensor cu = Upload(IntTensor({0, 2}));
  const DeviceTensor out = Normal(DType::kF32, {2, 32});
  const DeviceTensor half = Normal(DType::kF32, {2, 16});
  const auto run = [&](const Weight* plain, const Weight* pair, std::string text) {
    ExpectError(backend_->Linear({x.view, plain, {}, out.view}), StatusCode::kInvalidArgument,
                {"Linear", text});
    ExpectError(backend_->HeadLinear({heads.view, plain, out.view.SplitLast(32)}),
                StatusCode::kInvalidArgument, {"HeadLinear", text});
    ExpectError(backend_->GroupedGemm({x.view, cu.view, {}, plain, out.view}),
                StatusCode::kInvalidArgument, {"GroupedGemm", text});
    ExpectError(backend_->GatedUp({x.view, {}, {}, pair, {}, half.view}),
                StatusCode::kInvalidArgument, {"GatedUp", text});
  };
  const auto plain = Pack(*cpu, {{32}}, 32);
  const auto pair = Pack(*cpu, {{16, 16}}, 32, WeightUse::kGateUp);
  run(plain.get(), pair.get(), "packed by the CUDA backend");
  const auto own_plain = Pack(*backend_, {{32}}, 32);
  const auto own_pair = Pack(*backend_, {{16, 16}}, 32, WeightUse::kGateUp);
  run(own_pair.get(), own_plain.get(), "as gate and up");
  run(nullptr, nullptr, "weight");
}

TEST_F(CudaBackendTest, APackedWeightIsThatOfTheTwinHoweverItsPartsAreCut) {
  // The first part is more than the scratch for raw rows holds.
  const std::vector<int64_t> rows = {1000, 30};
  constexpr int64_t kColumns = 8200;
  std::vector<TestTensor> parts;
  WeightSpec spec;
  spec.groups.resize(1);
  for (int64_t n : rows) {
    parts.push_back(TestTensor(DType::kF32, {n, kColumns}));
    for (int64_t i = 0; i < parts.back().size(); ++i) {
      parts.back().at<float>(i) = 0.001f * static_cast<float>(i);
    }
    spec.groups[0].push_back({parts.back().view(), {}});
  }
  const auto weight = backend_->PackWeight(spec);
  ASSERT_TRUE(weight.ok()) << weight.status();
  const auto& packed = static_cast<const cuda::CudaWeight&>(**weight);
  const auto want = cuda::PackOnHost<uint16_t>(packed.layout(), [&](int i, int c) {
    const TensorView part = i < rows[0] ? parts[0].view() : parts[1].view();
    return FloatToBf16(part.row<float>(i < rows[0] ? i : i - rows[0])[c]);
  });
  std::vector<uint8_t> want_bytes(want.size() * 2);
  std::memcpy(want_bytes.data(), want.data(), want_bytes.size());
  EXPECT_EQ(packed.bytes(), static_cast<int64_t>(want_bytes.size()));
  EXPECT_TRUE(ReadBack(Bytes(const_cast<void*>(packed.data()), packed.bytes())) == want_bytes);
}

TEST_F(CudaBackendTest, ScalesStayWithTheirRowsWhereAPartIsCut) {
  // 32 MiB of rows, and one more block of scales.
  constexpr int32_t kRows = 4096 + 128;
  constexpr int32_t kColumns = 8192;
  constexpr int32_t kBlocks = kColumns / 128;
  std::vector<uint8_t> data(int64_t{kRows} * kColumns, 0x38);
  TestTensor scale(DType::kF32, {kRows / 128, kBlocks});
  scale.FillNormal(random_);
  const auto weight = backend_->PackWeight(
      {.groups = {{{TensorView(data.data(), DType::kF8E4M3, {kRows, kColumns}), scale.view()}}}});
  ASSERT_TRUE(weight.ok()) << weight.status();
  const auto& packed = static_cast<const cuda::CudaWeight&>(**weight);
  ASSERT_NE(packed.scales(), nullptr);
  std::vector<float> want;
  for (int32_t row = 0; row < kRows; row += cuda::kScaleRows) {
    for (int32_t b = 0; b < kBlocks; ++b) want.push_back(scale.at<float>(row / 128 * kBlocks + b));
  }
  std::vector<float> got(want.size());
  const auto size = static_cast<int64_t>(want.size());
  float* const scales = const_cast<float*>(packed.scales());
  ASSERT_TRUE(backend_
                  ->Read(TensorView(got.data(), DType::kF32, {size}),
                         TensorView(scales, DType::kF32, {size}))
                  .ok());
  EXPECT_TRUE(got == want);
}

TEST_F(CudaBackendTest, AWeightWithAnF8NanIsRefused) {
  TestTensor data(DType::kF8E4M3, {15, 101});
  data.FillNormal(random_);
  TestTensor scale(DType::kF32, {1, 1});
  scale.FillNormal(random_);
  for (int64_t at : {0, 7, 8, 799, 1512, 1514}) {  // some of them behind the last whole eight
    const uint8_t before = data.at<uint8_t>(at);
    data.at<uint8_t>(at) = at % 2 == 0 ? 0x7F : 0xFF;
    ExpectError(backend_->PackWeight({.groups = {{{data.view(), scale.view()}}}}),
                StatusCode::kInvalidArgument, {"PackWeight", "group 0", "NaN"});
    data.at<uint8_t>(at) = before;
  }
  EXPECT_TRUE(backend_->PackWeight({.groups = {{{data.view(), scale.view()}}}}).ok());
}

class CreateCudaBackendTest : public emu::EmuTest {};

TEST_F(CreateCudaBackendTest, ADeviceThatIsNotThereIsNotFound) {
  emu::SetDevice({.count = 2});
  EXPECT_EQ(NumCudaDevices(), 2);
  ExpectError(CreateCudaBackend({.device = 2}), StatusCode::kNotFound, {"device 2", "2 found"});
  ExpectError(CreateCudaBackend({.device = -1}), StatusCode::kNotFound, {"device -1", "2 found"});
  emu::SetDevice({.count = 0});
  EXPECT_EQ(NumCudaDevices(), 0);
  ExpectError(CreateCudaBackend({}), StatusCode::kNotFound, {"device 0", "0 found"});
}

TEST_F(CreateCudaBackendTest, AnOldDeviceIsRefused) {
  emu::SetDevice({.major = 7, .minor = 5});
  ExpectError(CreateCudaBackend({}), StatusCode::kFailedPrecondition, {"sm_80", "sm_75"});
}

TEST_F(CreateCudaBackendTest, TheDescriptionNamesTheDevice) {
  emu::SetDevice({.major = 8, .minor = 0, .num_sms = 7});
  const auto backend = CreateCudaBackend({});
  ASSERT_TRUE(backend.ok()) << backend.status();
  for (const char* part : {"cuda", "sm_80", "7 multiprocessors", "1.1 GB"}) {
    EXPECT_NE((*backend)->Description().find(part), std::string::npos)
        << part << " in " << (*backend)->Description();
  }
}

}  // namespace
}  // namespace jevons
