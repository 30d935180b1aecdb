#include "parallel/rendezvous.h"

#include <poll.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "parallel/call_check.h"
#include "parallel/socket.h"

namespace jevons {
namespace {

constexpr char kMagic[] = "jevons ranks 1";
constexpr int64_t kCancelledTickMs = 50;
constexpr absl::Duration kTry = absl::Milliseconds(500);  // above the time that a connection takes
constexpr absl::Duration kAnswerTime = absl::Seconds(5);  // to tell a rank why it is refused

// Fields of a frame: numbers as they are, strings with their length.
class Writer {
 public:
  void Number(int64_t value) { out_.append(reinterpret_cast<const char*>(&value), sizeof(value)); }
  void String(const std::string& value) {
    Number(static_cast<int64_t>(value.size()));
    out_ += value;
  }
  std::string Take() { return std::move(out_); }

 private:
  std::string out_;
};

class Reader {
 public:
  explicit Reader(const std::string& in) : in_(in) {}
  int64_t Number() {
    int64_t value = -1;
    ok_ = ok_ && in_.size() - at_ >= sizeof(value);
    if (!ok_) return -1;
    std::memcpy(&value, in_.data() + at_, sizeof(value));
    at_ += sizeof(value);
    return value;
  }
  std::string String() {
    const int64_t size = Number();
    ok_ = ok_ && size >= 0 && in_.size() - at_ >= static_cast<uint64_t>(size);
    if (!ok_) return "";
    at_ += size;
    return in_.substr(at_ - size, size);
  }
  bool ok() const { return ok_; }

 private:
  const std::string& in_;
  size_t at_ = 0;
  bool ok_ = true;
};

struct Hello {
  int64_t rank = -1;
  int64_t world_size = -1;
  std::string fingerprint;
  std::string offer;
};

std::string Encode(const Hello& hello) {
  Writer out;
  out.String(kMagic);
  out.Number(hello.rank);
  out.Number(hello.world_size);
  out.String(hello.fingerprint);
  out.String(hello.offer);
  return out.Take();
}

bool Decode(const std::string& frame, Hello* hello) {
  Reader in(frame);
  if (in.String() != kMagic) return false;
  hello->rank = in.Number();
  hello->world_size = in.Number();
  hello->fingerprint = in.String();
  hello->offer = in.String();
  return in.ok();
}

// The leader's answer: why not, or all offers.
std::string EncodeAnswer(const absl::Status& status, const std::vector<std::string>& offers) {
  Writer out;
  out.Number(static_cast<int64_t>(status.code()));
  out.String(std::string(status.message()));
  for (const std::string& offer : offers) out.String(offer);
  return out.Take();
}

absl::StatusOr<std::vector<std::string>> DecodeAnswer(const std::string& frame,
                                                      int32_t world_size) {
  Reader in(frame);
  const auto code = static_cast<absl::StatusCode>(in.Number());
  const absl::Status status(code, in.String());
  if (!in.ok()) return absl::InternalError("the leader's answer makes no sense");
  RETURN_IF_ERROR(status);
  std::vector<std::string> offers;
  for (int32_t r = 0; r < world_size; ++r) offers.push_back(in.String());
  if (!in.ok()) return absl::InternalError("the leader's answer is cut short");
  return offers;
}

class Leader {
 public:
  Leader(const RendezvousOptions& options, SteadyTime deadline)
      : options_(options), deadline_(deadline), joined_(options.info.world_size) {}

  absl::Status Listen() {
    ASSIGN_OR_RETURN(listener_, Socket::Listen(options_.leader));
    return absl::OkStatus();
  }
  absl::StatusOr<std::string> LocalHost() const { return listener_.LocalHost(); }

  absl::StatusOr<std::vector<std::string>> Gather(const std::string& own_offer) {
    const absl::Status status = WaitForAll();
    std::vector<std::string> offers;
    for (const Joined& joined : joined_) offers.push_back(joined.hello.offer);
    offers[0] = own_offer;
    const std::string answer = EncodeAnswer(status, offers);
    for (int32_t r = 1; r < options_.info.world_size; ++r) {
      if (joined_[r].socket.valid()) Answer(joined_[r].socket, answer);
    }
    for (const Visitor& visitor : visitors_) Answer(visitor.socket, answer);
    RETURN_IF_ERROR(status);
    return offers;
  }

 private:
  struct Joined {
    Socket socket;
    Hello hello;
  };
  // Connected, but has not said who it is.
  struct Visitor {
    Socket socket;
    std::string bytes;
  };

  // A rank that is gone by now will be missed in the first call.
  static void Answer(const Socket& socket, const std::string& answer) {
    const absl::Status sent = socket.WriteFrame(answer, SteadyDeadline(kAnswerTime));
    if (!sent.ok()) LogWarning("rendezvous_answer_lost", {{"error", sent.ToString()}});
  }

  std::vector<int32_t> Missing() const {
    std::vector<int32_t> missing;
    for (int32_t r = 1; r < options_.info.world_size; ++r) {
      if (!joined_[r].socket.valid()) missing.push_back(r);
    }
    return missing;
  }

  absl::Status WaitForAll() {
    while (!Missing().empty()) {
      std::vector<pollfd> waited = {{.fd = listener_.fd(), .events = POLLIN, .revents = 0}};
      for (const Visitor& visitor : visitors_) {
        waited.push_back({.fd = visitor.socket.fd(), .events = POLLIN, .revents = 0});
      }
      for (const Joined& joined : joined_) {
        // poll passes over what is not there.
        waited.push_back({.fd = joined.socket.fd(), .events = POLLIN, .revents = 0});
      }
      const auto left = deadline_ - std::chrono::steady_clock::now();
      const int64_t left_ms = std::chrono::ceil<std::chrono::milliseconds>(left).count();
      if (left_ms <= 0) {
        return MissingRanks(
            absl::StrCat("joining ", options_.info.world_size, " ranks at ", options_.leader),
            Missing(), options_.timeout);
      }
      if (options_.cancelled && options_.cancelled()) {
        return absl::CancelledError(
            absl::StrCat("the ranks at ", options_.leader, " are not wanted"));
      }
      const int64_t longest_ms = options_.cancelled ? kCancelledTickMs : 1 << 30;
      poll(waited.data(), waited.size(), static_cast<int>(std::min(left_ms, longest_ms)));
      DropLeavers();
      Socket next = listener_.Accept();
      if (next.valid()) visitors_.push_back({.socket = std::move(next), .bytes = {}});
      RETURN_IF_ERROR(HearVisitors());
    }
    return absl::OkStatus();
  }

  void DropLeavers() {
    for (Joined& joined : joined_) {
      std::string nothing;
      if (joined.socket.valid() && !joined.socket.ReadAvailable(&nothing)) joined = {};
    }
  }

  absl::Status HearVisitors() {
    for (size_t i = 0; i < visitors_.size();) {
      std::string frame;
      const bool open = visitors_[i].socket.ReadAvailable(&visitors_[i].bytes);
      const absl::StatusOr<bool> complete = TakeFrame(&visitors_[i].bytes, &frame);
      if (complete.ok() && !*complete && open) {
        ++i;
        continue;
      }
      Hello hello;
      if (!complete.ok() || !*complete || !Decode(frame, &hello)) {
        LogWarning("rendezvous_stranger", {{"leader", options_.leader}});
        visitors_.erase(visitors_.begin() + i);
        continue;
      }
      RETURN_IF_ERROR(Check(hello));
      joined_[hello.rank] = {.socket = std::move(visitors_[i].socket), .hello = hello};
      visitors_.erase(visitors_.begin() + i);
    }
    return absl::OkStatus();
  }

  absl::Status Check(const Hello& hello) const {
    const int32_t world_size = options_.info.world_size;
    if (hello.world_size != world_size) {
      return absl::FailedPreconditionError(absl::StrCat("the world size is ", world_size,
                                                        " at rank 0 and ", hello.world_size,
                                                        " at rank ", hello.rank));
    }
    RETURN_IF_ERROR(
        ValidateRank({.rank = static_cast<int32_t>(hello.rank), .world_size = world_size}));
    if (hello.rank == 0 || joined_[hello.rank].socket.valid()) {
      return absl::AlreadyExistsError(absl::StrCat("two processes joined ", options_.leader,
                                                   " as rank ", hello.rank, " of ", world_size));
    }
    if (hello.fingerprint != options_.fingerprint) {
      return absl::FailedPreconditionError(absl::StrCat("rank 0 runs '", options_.fingerprint,
                                                        "', rank ", hello.rank, " runs '",
                                                        hello.fingerprint, "'"));
    }
    return absl::OkStatus();
  }

  const RendezvousOptions& options_;
  const SteadyTime deadline_;
  Socket listener_;
  std::vector<Joined> joined_;  // by rank; 0 stays empty
  std::vector<Visitor> visitors_;
};

// Tries until the deadline, or until this rank is not wanted there any more.
absl::StatusOr<Socket> ConnectToLeader(const RendezvousOptions& options, SteadyTime deadline) {
  while (options.cancelled && std::chrono::steady_clock::now() < deadline) {
    const SteadyTime soon = std::min(deadline, SteadyDeadline(kTry));
    absl::StatusOr<Socket> socket = Socket::Connect(options.leader, soon);
    if (!absl::IsDeadlineExceeded(socket.status())) return socket;
    if (options.cancelled()) return absl::CancelledError("this rank is not wanted there");
  }
  return Socket::Connect(options.leader, deadline);
}

absl::StatusOr<std::vector<std::string>> Follow(
    const RendezvousOptions& options, SteadyTime deadline,
    const std::function<absl::StatusOr<std::string>(const std::string& host)>& make_offer) {
  const std::string where =
      absl::StrCat("rank ", options.info.rank, " joining rank 0 at ", options.leader, " within ",
                   absl::FormatDuration(options.timeout));
  const auto with_place = [&](const absl::Status& status) {
    return absl::Status(status.code(), absl::StrCat(where, ": ", status.message()));
  };
  absl::StatusOr<Socket> socket = ConnectToLeader(options, deadline);
  if (!socket.ok()) return with_place(socket.status());
  std::string host = options.listen_host;
  if (host.empty()) {
    ASSIGN_OR_RETURN(host, socket->LocalHost());
  }
  ASSIGN_OR_RETURN(const std::string offer, make_offer(host));
  const absl::Status sent = socket->WriteFrame(Encode({.rank = options.info.rank,
                                                       .world_size = options.info.world_size,
                                                       .fingerprint = options.fingerprint,
                                                       .offer = offer}),
                                               deadline);
  if (!sent.ok()) return with_place(sent);
  const absl::StatusOr<std::string> answer = socket->ReadFrame(deadline);
  if (!answer.ok()) return with_place(answer.status());
  return DecodeAnswer(*answer, options.info.world_size);
}

}  // namespace

absl::StatusOr<std::vector<std::string>> Rendezvous(
    const RendezvousOptions& options,
    const std::function<absl::StatusOr<std::string>(const std::string& host)>& make_offer) {
  RETURN_IF_ERROR(ValidateRank(options.info));
  const SteadyTime deadline = SteadyDeadline(options.timeout);
  if (options.info.rank != 0) return Follow(options, deadline, make_offer);
  Leader leader(options, deadline);
  RETURN_IF_ERROR(leader.Listen());
  std::string host = options.listen_host;
  if (host.empty()) {
    ASSIGN_OR_RETURN(host, leader.LocalHost());
    if (host == "0.0.0.0" || host == "::") {
      return absl::InvalidArgumentError(
          absl::StrCat("listen_host must name an address of this host that the other ranks reach: ",
                       "the leader's address ", options.leader, " does not"));
    }
  }
  ASSIGN_OR_RETURN(const std::string offer, make_offer(host));
  return leader.Gather(offer);
}

}  // namespace jevons
