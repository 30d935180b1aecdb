// What gRPC and protobuf print goes to our log.
#pragma once

namespace jevons {

// For the whole process; call before threads start. gRPC's errors become warnings. protobuf's lines
// are dropped: it prints one for every ill-formed string of a request, of which the client is told.
void RouteLibraryLogs();

}  // namespace jevons
