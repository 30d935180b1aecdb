#include "tests/support/http2_client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <nghttp2/nghttp2.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/time/clock.h"

namespace jevons {
namespace {

nghttp2_nv Header(const std::string& name, const std::string& value) {
  const auto bytes = [](const std::string& s) {
    return reinterpret_cast<uint8_t*>(const_cast<char*>(s.data()));
  };
  return {bytes(name), bytes(value), name.size(), value.size(), NGHTTP2_NV_FLAG_NONE};
}

// One uncompressed gRPC message.
std::string Framed(const std::string& message) {
  const uint32_t size = htonl(static_cast<uint32_t>(message.size()));
  std::string out(1, '\0');
  out.append(reinterpret_cast<const char*>(&size), sizeof(size));
  return out + message;
}

class Http2ClientImpl : public Http2Client {
 public:
  Http2ClientImpl(int fd, std::string address) : fd_(fd), address_(std::move(address)) {
    nghttp2_session_callbacks* callbacks = nullptr;
    nghttp2_session_callbacks_new(&callbacks);
    nghttp2_session_callbacks_set_send_callback(callbacks, &OnSend);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, &OnHeader);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, &OnData);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, &OnClose);
    nghttp2_session_client_new(&session_, callbacks, this);
    nghttp2_session_callbacks_del(callbacks);
    nghttp2_submit_settings(session_, NGHTTP2_FLAG_NONE, nullptr, 0);
  }
  ~Http2ClientImpl() override {
    nghttp2_session_del(session_);
    close(fd_);
  }

  void Send(const Http2Call& call) override {
    body_ = Framed(call.message);
    std::map<std::string, std::string> more = call.headers;
    more["te"] = "trailers";
    more["content-type"] = "application/grpc";
    const std::vector<std::pair<std::string, std::string>> first = {
        {":method", "POST"}, {":scheme", "http"}, {":path", call.path}, {":authority", address_}};
    std::vector<nghttp2_nv> headers;
    for (const auto& [name, value] : first) headers.push_back(Header(name, value));
    for (const auto& [name, value] : more) headers.push_back(Header(name, value));
    nghttp2_data_provider body = {};
    body.read_callback = &OnBody;
    answer_.start = absl::Now();
    nghttp2_submit_request(session_, nullptr, headers.data(), headers.size(), &body, nullptr);
    nghttp2_session_send(session_);
  }

  const Http2Answer& Read(size_t num_bytes, absl::Duration limit) override {
    const absl::Time end = absl::Now() + limit;
    while (!answer_.closed && answer_.data.size() < num_bytes && absl::Now() < end) {
      pollfd readable = {fd_, POLLIN, 0};
      if (poll(&readable, 1, 10) <= 0) continue;
      uint8_t buffer[1 << 16];
      const ssize_t count = recv(fd_, buffer, sizeof(buffer), 0);
      if (count <= 0) break;
      nghttp2_session_mem_recv(session_, buffer, static_cast<size_t>(count));
      nghttp2_session_send(session_);
    }
    return answer_;
  }

 private:
  static Http2ClientImpl* Self(void* user) { return static_cast<Http2ClientImpl*>(user); }

  static ssize_t OnSend(nghttp2_session*, const uint8_t* data, size_t length, int, void* user) {
    const ssize_t count = send(Self(user)->fd_, data, length, MSG_NOSIGNAL);
    return count < 0 ? static_cast<ssize_t>(NGHTTP2_ERR_CALLBACK_FAILURE) : count;
  }
  static ssize_t OnBody(nghttp2_session*, int32_t, uint8_t* to, size_t length, uint32_t* flags,
                        nghttp2_data_source*, void* user) {
    std::string& body = Self(user)->body_;
    const size_t count = std::min(length, body.size());
    std::memcpy(to, body.data(), count);
    body.erase(0, count);
    if (body.empty()) *flags |= NGHTTP2_DATA_FLAG_EOF;
    return static_cast<ssize_t>(count);
  }
  static int OnHeader(nghttp2_session*, const nghttp2_frame*, const uint8_t* name,
                      size_t name_length, const uint8_t* value, size_t value_length, uint8_t,
                      void* user) {
    const std::string key(reinterpret_cast<const char*>(name), name_length);
    Self(user)->answer_.trailers[key].assign(reinterpret_cast<const char*>(value), value_length);
    return 0;
  }
  static int OnData(nghttp2_session*, uint8_t, int32_t, const uint8_t* data, size_t length,
                    void* user) {
    Self(user)->answer_.data.append(reinterpret_cast<const char*>(data), length);
    return 0;
  }
  static int OnClose(nghttp2_session*, int32_t, uint32_t, void* user) {
    Self(user)->answer_.closed = true;
    Self(user)->answer_.end = absl::Now();
    return 0;
  }

  const int fd_;
  const std::string address_;
  nghttp2_session* session_ = nullptr;
  std::string body_;
  Http2Answer answer_;
};

}  // namespace

int Http2Answer::status() const {
  const auto it = trailers.find("grpc-status");
  int out = -1;
  if (it == trailers.end() || !absl::SimpleAtoi(it->second, &out)) return -1;
  return out;
}

std::unique_ptr<Http2Client> Http2Client::Connect(const std::string& address) {
  const size_t colon = address.rfind(':');
  int port = 0;
  sockaddr_in to = {};
  to.sin_family = AF_INET;
  if (colon == std::string::npos || !absl::SimpleAtoi(address.substr(colon + 1), &port) ||
      inet_pton(AF_INET, address.substr(0, colon).c_str(), &to.sin_addr) != 1) {
    return nullptr;
  }
  to.sin_port = htons(static_cast<uint16_t>(port));
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  if (connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof(to)) != 0) {
    close(fd);
    return nullptr;
  }
  return std::make_unique<Http2ClientImpl>(fd, address);
}

Http2Answer CallHttp2(const std::string& address, const Http2Call& call, absl::Duration limit) {
  const std::unique_ptr<Http2Client> client = Http2Client::Connect(address);
  if (client == nullptr) return {};
  client->Send(call);
  return client->Read(std::numeric_limits<size_t>::max(), limit);
}

}  // namespace jevons
