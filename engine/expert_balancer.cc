#include "engine/expert_balancer.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/check.h"
#include "base/log.h"
#include "parallel/placement.h"

namespace jevons {
namespace {

constexpr int64_t kHalfLifeTokens = 1 << 16;
// How long a load is taken to stay as it is.
constexpr double kHorizonSeconds = 600;
// Of the time of a step, what the routed experts take: about half in the models served.
constexpr double kExpertShare = 0.5;

int64_t BytesOf(const MlpWeights& experts) {
  return experts.gate_up->bytes() + experts.down->bytes();
}

}  // namespace

std::unique_ptr<ExpertBalancer> ExpertBalancer::Create(LoadedModel* model) {
  if (model->packer == nullptr || model->runner->experts() == nullptr || !model->reopen) {
    return nullptr;
  }
  std::vector<int32_t> layers;
  for (int32_t i = 0; i < model->config.num_hidden_layers; ++i) {
    if (model->config.IsMoeLayer(i)) layers.push_back(i);
  }
  auto load = ExpertLoad::Create(static_cast<int32_t>(layers.size()),
                                 model->config.n_routed_experts, kHalfLifeTokens);
  CHECK(load.ok());
  return std::unique_ptr<ExpertBalancer>(
      new ExpertBalancer(model, *std::move(load), std::move(layers)));
}

ExpertBalancer::ExpertBalancer(LoadedModel* model, ExpertLoad load, std::vector<int32_t> layers)
    : model_(model),
      load_(std::move(load)),
      layers_(std::move(layers)),
      reader_(model, model->packer.get()) {
  for (int32_t layer : layers_) {
    bytes_.push_back(BytesOf(model->runner->weights().layers[layer].moe.experts));
  }
  thread_ = std::thread([this] { Loop(); });
}

ExpertBalancer::~ExpertBalancer() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
}

absl::Status ExpertBalancer::AfterStep() {
  if (++num_steps_ % model_->options.balance_interval_steps != 0) return absl::OkStatus();
  return SumLoad();
}

absl::Status ExpertBalancer::SumLoad() {
  ExpertParallel& experts = *model_->runner->experts();
  const int64_t num_experts = model_->config.n_routed_experts;
  sums_.clear();
  ASSIGN_OR_RETURN(const std::span<const int64_t> all_counts, experts.TakeChoiceCounts());
  for (int32_t layer : layers_) {
    const auto counts = all_counts.subspan(layer * num_experts, num_experts);
    sums_.insert(sums_.end(), counts.begin(), counts.end());
  }
  const int64_t num_choices =
      std::accumulate(sums_.begin(), sums_.begin() + num_experts, int64_t{0});
  sums_.push_back(num_choices / model_->config.num_experts_per_tok);
  {
    MutexLock lock(&mutex_);
    sums_.push_back(working_ || job_.has_value() ? 1 : 0);
  }
  // Each rank's own speed of loading; all count with the mean.
  sums_.push_back(static_cast<int64_t>(model_->load_seconds_per_byte * 1e15));
  RETURN_IF_ERROR(model_->communicator->AllReduce(std::span(sums_), ReduceOp::kSum));
  const int32_t num_ranks = model_->communicator->info().world_size;
  const double seconds_per_byte = static_cast<double>(sums_.back()) * 1e-15 / num_ranks;
  sums_.pop_back();
  const bool busy = sums_.back() > 0;
  sums_.pop_back();
  const int64_t num_tokens = sums_.back();
  sums_.pop_back();
  RETURN_IF_ERROR(load_.Add(sums_, num_tokens));
  if (busy || num_tokens == 0) return absl::OkStatus();
  Job job = {.load = {}, .present = PresentMaps(), .costs = Costs(seconds_per_byte)};
  for (int32_t i = 0; i < load_.num_layers(); ++i) {
    job.load.insert(job.load.end(), load_.of_layer(i).begin(), load_.of_layer(i).end());
  }
  MutexLock lock(&mutex_);
  failed_ = false;
  job_ = std::move(job);
  changed_.NotifyAll();
  return absl::OkStatus();
}

std::vector<ExpertMap> ExpertBalancer::PresentMaps() const {
  std::vector<ExpertMap> out;
  for (int32_t layer : layers_) out.push_back(model_->runner->group().maps[layer]);
  return out;
}

MoveCosts ExpertBalancer::Costs(double seconds_per_byte) const {
  const MlpWeights& experts = model_->runner->weights().layers[layers_[0]].moe.experts;
  const int32_t num_ranks = model_->options.num_ranks;
  return {.bytes_per_expert = bytes_[0] / experts.down->num_groups(),
          .seconds_per_byte = seconds_per_byte / num_ranks,
          .expert_seconds_per_second = kExpertShare / static_cast<double>(layers_.size()),
          .horizon_seconds = kHorizonSeconds,
          .noise = NoiseOfCounts(load_.tokens() * model_->config.num_experts_per_tok, num_ranks)};
}

ExpertBalancer::Progress ExpertBalancer::progress() {
  MutexLock lock(&mutex_);
  return {.num_ready = num_ready_, .failed = failed_};
}

absl::Status ExpertBalancer::Apply(const Progress& agreed) {
  MutexLock lock(&mutex_);
  if (agreed.failed) {
    // Every rank drops what it has ready, so all count from the same number again.
    failed_ = true;
    ready_.reset();
    num_ready_ = num_swapped_;
    changed_.NotifyAll();
    return absl::OkStatus();
  }
  if (agreed.num_ready <= num_swapped_) return absl::OkStatus();
  const int32_t layer = ready_->layer;
  RETURN_IF_ERROR(model_->runner->ReplaceExperts(layers_[layer], ready_->map, ready_->experts));
  replaced_ = std::move(ready_->experts);
  ready_.reset();
  ++num_swapped_;
  changed_.NotifyAll();
  return absl::OkStatus();
}

void ExpertBalancer::Loop() {
  while (true) {
    std::optional<Job> job;
    {
      MutexLock lock(&mutex_);
      working_ = false;
      while (!job_.has_value() && !stopping_) changed_.Wait(&mutex_);
      if (stopping_) return;
      job.swap(job_);
      working_ = true;
    }
    Work(*job);
    reader_.Close();
  }
}

void ExpertBalancer::Work(const Job& job) {
  const absl::Status status = PlanAndPrepare(job);
  if (status.ok()) return;
  LogWarning("experts_not_moved", {{"error", status.ToString()}});
  MutexLock lock(&mutex_);
  failed_ = true;
}

absl::Status ExpertBalancer::PlanAndPrepare(const Job& job) {
  const int32_t num_experts = load_.num_experts();
  ASSIGN_OR_RETURN(const double price, CopyPrice(job.costs));
  std::vector<ExpertMap> wanted;
  for (size_t i = 0; i < layers_.size(); ++i) {
    const ExpertMap& present = job.present[i];
    ASSIGN_OR_RETURN(
        ExpertMap map,
        PlanPlacement({.load = std::span(job.load).subspan(i * num_experts, num_experts),
                       .shape = {.ranks_per_node = present.num_ranks(),
                                 .slots_per_rank = present.slots_per_rank()},
                       .present = &present,
                       .copy_price = price}));
    wanted.push_back(std::move(map));
  }
  ASSIGN_OR_RETURN(const MovePlan plan, PlanMoves(job.present, wanted, job.load, job.costs));
  for (const LayerMove& move : plan.moves) {
    ASSIGN_OR_RETURN(Ready ready, Prepare(job, wanted[move.layer], move));
    if (!Publish(std::move(ready))) break;
  }
  return absl::OkStatus();
}

absl::StatusOr<ExpertBalancer::Ready> ExpertBalancer::Prepare(const Job& job,
                                                              const ExpertMap& wanted,
                                                              const LayerMove& move) {
  const int32_t rank = model_->communicator->info().rank;
  Ready out = {.layer = move.layer, .map = wanted, .experts = {}};
  const auto before = job.present[move.layer].experts_of_rank(rank);
  const auto after = wanted.experts_of_rank(rank);
  if (std::equal(before.begin(), before.end(), after.begin(), after.end())) return out;
  Backend& packer = *model_->packer;
  RETURN_IF_ERROR(packer.BindThread());
  ASSIGN_OR_RETURN(out.experts, reader_.Read(layers_[move.layer], after));
  RETURN_IF_ERROR(packer.Wait());
  if (!packer.traits().host_memory && BytesOf(out.experts) != bytes_[move.layer]) {
    return absl::FailedPreconditionError(
        absl::StrCat("experts of layer ", layers_[move.layer], " are stored in different types: ",
                     bytes_[move.layer], " bytes would be ", BytesOf(out.experts)));
  }
  LogInfo("experts_read", {{"layer", layers_[move.layer]},
                           {"copies", move.copies.size()},
                           {"imbalance", absl::StrFormat("%.2f", move.present_imbalance)},
                           {"then", absl::StrFormat("%.2f", move.wanted_imbalance)}});
  return out;
}

bool ExpertBalancer::Publish(Ready ready) {
  MlpWeights old;
  MutexLock lock(&mutex_);
  if (failed_ || stopping_) return false;
  const int64_t ready_before = num_ready_;
  ready_ = std::move(ready);
  num_ready_ = ready_before + 1;
  while (ready_.has_value() && !failed_ && !stopping_) changed_.Wait(&mutex_);
  std::swap(old, replaced_);
  return !failed_ && !stopping_;
}

}  // namespace jevons
