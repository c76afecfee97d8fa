// Where an endpoint acts on what Stripes finds: sockets are added, congestion control is changed.
#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "transport/dialer.h"
#include "transport/endpoint.h"

namespace pccl::transport {
namespace {

// Those that take every lost packet for a full link.
constexpr std::array kLossBased = {"cubic", "reno", "htcp", "westwood", "bic"};

}  // namespace

void Endpoint::choose_stripes(Connection& connection, TimePoint now) {
  const bool may_add = options_.sockets == 0;
  const bool may_use_bbr = options_.congestion_control == "auto";
  const std::vector<Link*> links = connection.links();
  if (links.empty() || (!may_add && !may_use_bbr)) return;
  if (!connection.stripes) {
    const int first = may_add ? 1 : kSocketsMax;
    const int most = std::max(first, Stripes::kMeasuredMax);
    connection.stripes = std::make_unique<Stripes>(first, most, may_use_bbr);
    connection.usual_control = links.front()->congestion_control();
  }
  StripeSight sight{
      .now = now, .has_more = connection.has_unsent(), .sockets = static_cast<int>(links.size())};
  sight.delivered_bytes = connection.traffic.delivered_bytes;
  for (const Link* link : links) {
    const LinkState state = link->state();
    sight.delivered_bytes += state.delivered_bytes;
    sight.window_limited_us += state.window_limited_us;
    sight.buffer_limited_us += state.buffer_limited_us;
    sight.buffer_bytes += state.buffer_bytes;
    sight.sent_segments += state.sent_segments;
    sight.resent_segments += state.resent_segments;
    sight.round_trip_seconds = std::max(sight.round_trip_seconds, state.round_trip_seconds);
    sight.round_trip_seconds_min =
        std::max(sight.round_trip_seconds_min, state.round_trip_seconds_min);
  }
  const uint64_t seen = std::max(connection.delivered_seen, sight.delivered_bytes);
  delivered_seen_ += seen - std::exchange(connection.delivered_seen, seen);
  sight.others_bytes = delivered_seen_ - seen;
  const std::string& usual = connection.usual_control;
  sight.is_loss_based = std::find(kLossBased.begin(), kLossBased.end(), usual) != kLossBased.end();
  const bool had_bbr = connection.stripes->uses_bbr();
  if (connection.stripes->look(sight)) use_stripes(connection, had_bbr);
}

void Endpoint::use_stripes(Connection& connection, bool had_bbr) {
  Stripes& stripes = *connection.stripes;
  if (stripes.uses_bbr() != had_bbr) {
    for (Link* link : connection.links()) {
      if (link->set_congestion_control(had_bbr ? connection.usual_control : Stripes::kBbr))
        continue;
      stripes.refuse_bbr();
      break;
    }
    ended_.changed_controls += stripes.uses_bbr() != had_bbr ? 1 : 0;
  }
  const size_t wanted =
      options_.sockets == 0 ? static_cast<size_t>(stripes.sockets()) : connection.link_count();
  for (size_t count = connection.link_count(); count < wanted; ++count) dial_stripe(connection);
  const std::string text = "sends over " + std::to_string(wanted) +
                           " socket(s), congestion control " +
                           (stripes.uses_bbr() ? Stripes::kBbr : connection.usual_control);
  recorder_.note(FlightEvent::StripesChanged, {.member = to_text(connection.peer.member_id)}, text);
}

// One more socket for it. Both sides may add some: each has numbers of its own.
void Endpoint::dial_stripe(Connection& connection) {
  if (connection.proven.empty()) return;  // it can't be called: it adds what it needs
  const std::vector<Link*> links = connection.links();
  const auto is_taken = [&](uint16_t index) {
    return std::any_of(links.begin(), links.end(),
                       [index](const Link* link) { return link->index == index; }) ||
           std::any_of(dialers_.begin(), dialers_.end(), [&](const auto& dialer) {
             return &dialer->connection() == &connection && !dialer->finished() &&
                    dialer->socket_index() == index;
           });
  };
  uint16_t index = address_.member_id < connection.peer.member_id ? 1 : 2;
  while (is_taken(index)) index += 2;
  if (index >= kSocketsMax) return;
  ended_.added_sockets += 1;
  begin_dial(connection, Intent::Resume, index, after(Clock::now(), options_.grace_seconds));
}

}  // namespace pccl::transport
