package storage

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/net/netutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/util/flowcontrol"
)

// What one plane may have of this server: it is a tenant's, in the worst case his word.
const (
	maxMessage = 1 << 20
	// A plane's parts call four at a time; each call is a watch of one key while it waits.
	maxStreams = 16
	// It has one connection for its controllers, and a second while that one ends.
	maxConnections = 4
	// maxCall bounds a call that names no end.
	maxCall = 2 * time.Minute
)

// Serve answers the plane of the workspace with this key and UID on a listener of its own
// until ctx is done, and closes that.
func (c *Controller) Serve(ctx context.Context, workspace, uid string, listener net.Listener) error {
	e := &endpoint{Controller: c, workspace: workspace, uid: uid,
		pace: flowcontrol.NewTokenBucketRateLimiter(choosePace, chooseBurst)}
	log := c.cfg.Log.With("workspace", workspace)
	server := grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage), grpc.MaxConcurrentStreams(maxStreams),
		grpc.ConnectionTimeout(10*time.Second), grpc.NumStreamWorkers(0),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			ctx, cancel := context.WithTimeout(ctx, maxCall)
			defer cancel()
			res, err := handle(ctx, req)
			var refused refusedError
			if errors.As(err, &refused) {
				log.Warn("a plane's request about a volume", "method", info.FullMethod, "err", refused.err)
			} else if _, told := status.FromError(err); !told {
				err = status.Error(codes.Internal, "the platform can't do it")
			}
			return res, err
		}))
	csi.RegisterIdentityServer(server, e)
	csi.RegisterControllerServer(server, e)
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	err := server.Serve(netutil.LimitListener(listener, maxConnections))
	if ctx.Err() != nil {
		return nil
	}
	return err
}
