#include "server/rank_wire.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace jevons {
namespace {

void AddLogprobs(const std::vector<Logprobs>& from,
                 google::protobuf::RepeatedPtrField<wire::Logprobs>& to) {
  for (const Logprobs& entry : from) {
    wire::Logprobs& out = *to.Add();
    out.add_ids(entry.chosen.id);
    out.add_values(entry.chosen.logprob);
    for (const TokenLogprob& token : entry.top) {
      out.add_ids(token.id);
      out.add_values(token.logprob);
    }
  }
}

std::vector<Logprobs> ReadLogprobs(const google::protobuf::RepeatedPtrField<wire::Logprobs>& from) {
  std::vector<Logprobs> out;
  for (const wire::Logprobs& entry : from) {
    Logprobs& logprobs = out.emplace_back();
    for (int i = 0; i < std::min(entry.ids_size(), entry.values_size()); ++i) {
      const TokenLogprob token{.id = entry.ids(i), .logprob = entry.values(i)};
      if (i == 0) {
        logprobs.chosen = token;
      } else {
        logprobs.top.push_back(token);
      }
    }
  }
  return out;
}

wire::End EndToWire(const StreamEnd& end) {
  wire::End out;
  out.set_reason(static_cast<int32_t>(end.reason));
  if (!end.error.ok()) *out.mutable_error() = ToWire(end.error);
  out.set_prompt_tokens(end.usage.prompt_tokens);
  out.set_completion_tokens(end.usage.completion_tokens);
  out.set_reasoning_tokens(end.usage.reasoning_tokens);
  out.set_cached_tokens(end.usage.cached_tokens);
  return out;
}

StreamEnd EndFromWire(const wire::End& end) {
  return {.reason = static_cast<FinishReason>(end.reason()),
          .error = FromWire(end.error()),
          .usage = {.prompt_tokens = end.prompt_tokens(),
                    .cached_tokens = end.cached_tokens(),
                    .completion_tokens = end.completion_tokens(),
                    .reasoning_tokens = end.reasoning_tokens()}};
}

}  // namespace

wire::Submit ToWire(uint64_t id, const GenerationRequest& request, absl::Time now) {
  wire::Submit out;
  out.set_id(id);
  out.mutable_prompt_ids()->Add(request.prompt_ids.begin(), request.prompt_ids.end());
  out.set_max_new_tokens(request.max_new_tokens);
  wire::Sampling& sampling = *out.mutable_sampling();
  sampling.set_temperature(request.sampling.temperature);
  sampling.set_top_k(request.sampling.top_k);
  sampling.set_top_p(request.sampling.top_p);
  sampling.set_min_p(request.sampling.min_p);
  sampling.set_seed(request.sampling.seed);
  for (const auto& [id, bias] : request.sampling.logit_bias) {
    sampling.add_bias_ids(id);
    sampling.add_biases(bias);
  }
  for (const std::string& stop : request.stop) out.add_stop(stop);
  out.set_ignore_eos(request.ignore_eos);
  out.set_num_logprobs(request.num_logprobs);
  out.set_num_prompt_logprobs(request.num_prompt_logprobs);
  out.set_cache_salt(request.cache_salt);
  if (request.deadline != absl::InfiniteFuture()) {
    out.set_nanoseconds_left(absl::ToInt64Nanoseconds(request.deadline - now));
  }
  return out;
}

GenerationRequest FromWire(const wire::Submit& submit, absl::Time now) {
  GenerationRequest out;
  out.prompt_ids.assign(submit.prompt_ids().begin(), submit.prompt_ids().end());
  out.max_new_tokens = submit.max_new_tokens();
  const wire::Sampling& sampling = submit.sampling();
  out.sampling.temperature = sampling.temperature();
  out.sampling.top_k = sampling.top_k();
  out.sampling.top_p = sampling.top_p();
  out.sampling.min_p = sampling.min_p();
  out.sampling.seed = sampling.seed();
  for (int i = 0; i < std::min(sampling.bias_ids_size(), sampling.biases_size()); ++i) {
    out.sampling.logit_bias.emplace_back(sampling.bias_ids(i), sampling.biases(i));
  }
  out.stop.assign(submit.stop().begin(), submit.stop().end());
  out.ignore_eos = submit.ignore_eos();
  out.num_logprobs = submit.num_logprobs();
  out.num_prompt_logprobs = submit.num_prompt_logprobs();
  out.cache_salt = submit.cache_salt();
  if (submit.has_nanoseconds_left()) {
    out.deadline = now + absl::Nanoseconds(submit.nanoseconds_left());
  }
  out.given.token_ids.assign(submit.given().token_ids().begin(), submit.given().token_ids().end());
  out.given.num_prompt_logprobs = submit.given().num_prompt_logprobs();
  return out;
}

void SetGiven(const GivenOutput& given, wire::Submit* submit) {
  wire::Given& out = *submit->mutable_given();
  out.mutable_token_ids()->Add(given.token_ids.begin(), given.token_ids.end());
  out.set_num_prompt_logprobs(given.num_prompt_logprobs);
}

wire::ToRank ToWire(const Membership& membership) {
  wire::ToRank message;
  wire::Regroup& out = *message.mutable_regroup();
  out.set_epoch(membership.epoch);
  out.mutable_ranks()->Add(membership.ranks.begin(), membership.ranks.end());
  out.set_rendezvous(membership.rendezvous);
  out.set_reason(membership.reason);
  return message;
}

Membership FromWire(const wire::Regroup& regroup) {
  return {.epoch = regroup.epoch(),
          .ranks = {regroup.ranks().begin(), regroup.ranks().end()},
          .rendezvous = regroup.rendezvous(),
          .reason = regroup.reason()};
}

wire::Chunk ToWire(uint64_t id, const StreamChunk& chunk) {
  wire::Chunk out;
  out.set_id(id);
  const StreamDelta& delta = chunk.delta;
  out.set_channel(delta.channel == Channel::kThinking ? wire::CHANNEL_THINKING
                                                      : wire::CHANNEL_ANSWER);
  out.set_text(delta.text);
  out.mutable_token_ids()->Add(delta.token_ids.begin(), delta.token_ids.end());
  AddLogprobs(delta.logprobs, *out.mutable_logprobs());
  AddLogprobs(delta.prompt_logprobs, *out.mutable_prompt_logprobs());
  if (chunk.end) *out.mutable_end() = EndToWire(*chunk.end);
  return out;
}

StreamChunk FromWire(wire::Chunk chunk) {
  StreamChunk out;
  out.delta.channel =
      chunk.channel() == wire::CHANNEL_THINKING ? Channel::kThinking : Channel::kAnswer;
  out.delta.text = std::move(*chunk.mutable_text());
  out.delta.token_ids.assign(chunk.token_ids().begin(), chunk.token_ids().end());
  out.delta.logprobs = ReadLogprobs(chunk.logprobs());
  out.delta.prompt_logprobs = ReadLogprobs(chunk.prompt_logprobs());
  if (chunk.has_end()) out.end = EndFromWire(chunk.end());
  return out;
}

wire::ToRank ToWire(const GroupShape& shape) {
  wire::ToRank message;
  wire::GroupShape& out = *message.mutable_start()->mutable_shape();
  out.set_max_model_len(shape.max_model_len);
  out.set_kv_cache_tokens(shape.kv_cache_tokens);
  out.set_num_slots(shape.num_slots);
  return message;
}

GroupShape FromWire(const wire::GroupShape& shape) {
  return {.max_model_len = shape.max_model_len(),
          .kv_cache_tokens = shape.kv_cache_tokens(),
          .num_slots = shape.num_slots()};
}

wire::FromRank ToWire(const GroupBreak& seen) {
  wire::FromRank message;
  wire::Broken& out = *message.mutable_broken();
  out.set_epoch(seen.epoch);
  *out.mutable_error() = ToWire(seen.status);
  out.mutable_unreached()->Add(seen.unreached.begin(), seen.unreached.end());
  return message;
}

GroupBreak FromWire(const wire::Broken& broken) {
  return {.epoch = broken.epoch(),
          .status = FromWire(broken.error()),
          .unreached = {broken.unreached().begin(), broken.unreached().end()}};
}

wire::Heartbeat ToWire(const EngineStats& stats) {
  wire::Heartbeat out;
  out.set_num_queued(stats.num_queued);
  out.set_num_running(stats.num_running);
  out.set_num_blocks(stats.num_blocks);
  out.set_num_free_blocks(stats.num_free_blocks);
  out.set_num_steps(stats.num_steps);
  out.set_num_preemptions(stats.num_preemptions);
  out.set_num_requests(stats.num_requests);
  out.set_num_prompt_tokens(stats.num_prompt_tokens);
  out.set_num_cached_tokens(stats.num_cached_tokens);
  out.set_num_new_tokens(stats.num_new_tokens);
  out.set_group_epoch(stats.group_epoch);
  out.set_step_age_us(absl::ToInt64Microseconds(stats.step_age));
  out.set_largest_token_gap_us(absl::ToInt64Microseconds(stats.largest_token_gap));
  if (stats.place_epoch < 0) return out;
  wire::Place& place = *out.mutable_place();
  place.set_epoch(stats.place_epoch);
  place.set_position(stats.place.position);
  place.set_waits_for(stats.place.waits_for);
  place.set_behind_rows(stats.place.behind_rows);
  return out;
}

EngineStats FromWire(const wire::Heartbeat& heartbeat) {
  return {.num_queued = heartbeat.num_queued(),
          .num_running = heartbeat.num_running(),
          .num_blocks = heartbeat.num_blocks(),
          .num_free_blocks = heartbeat.num_free_blocks(),
          .num_steps = heartbeat.num_steps(),
          .num_preemptions = heartbeat.num_preemptions(),
          .num_requests = heartbeat.num_requests(),
          .num_prompt_tokens = heartbeat.num_prompt_tokens(),
          .num_cached_tokens = heartbeat.num_cached_tokens(),
          .num_new_tokens = heartbeat.num_new_tokens(),
          .num_moved_layers = 0,
          .group_epoch = heartbeat.group_epoch(),
          .step_age = absl::Microseconds(heartbeat.step_age_us()),
          .largest_token_gap = absl::Microseconds(heartbeat.largest_token_gap_us()),
          .place = {.position = heartbeat.place().position(),
                    .waits_for = heartbeat.has_place() ? heartbeat.place().waits_for() : -1,
                    .behind_rows = heartbeat.place().behind_rows()},
          .place_epoch = heartbeat.has_place() ? heartbeat.place().epoch() : -1};
}

void SetPrefixChanges(const PrefixChanges& changes, wire::Heartbeat* heartbeat) {
  heartbeat->mutable_removed_prefixes()->Add(changes.removed.begin(), changes.removed.end());
  heartbeat->mutable_added_prefixes()->Add(changes.added.begin(), changes.added.end());
}

PrefixChanges PrefixChangesFromWire(const wire::Heartbeat& heartbeat) {
  return {.removed = {heartbeat.removed_prefixes().begin(), heartbeat.removed_prefixes().end()},
          .added = {heartbeat.added_prefixes().begin(), heartbeat.added_prefixes().end()}};
}

wire::Error ToWire(const absl::Status& status) {
  wire::Error out;
  out.set_code(static_cast<int32_t>(status.code()));
  out.set_text(std::string(status.message()));
  return out;
}

absl::Status FromWire(const wire::Error& error) {
  return absl::Status(static_cast<absl::StatusCode>(error.code()), error.text());
}

}  // namespace jevons
