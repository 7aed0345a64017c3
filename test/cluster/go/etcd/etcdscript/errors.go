package main

import (
	"context"
	"errors"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/status"
)

// failure is an error as JSON: the gRPC code's name, or InvalidCommand for what never was a request.
type failure struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	// Name is that of the error in etcd's package rpctypes which it is, for errors.Is.
	Name string `json:"name,omitempty"`
}

// invalidCommand is a mistake in the script.
type invalidCommand struct{ error }

func failureOf(err error) *failure {
	if mistake, ok := errors.AsType[invalidCommand](err); ok {
		return &failure{Code: "InvalidCommand", Message: mistake.Error()}
	}
	described := &failure{Message: err.Error()}
	if known, ok := errors.AsType[rpctypes.EtcdError](err); ok {
		described.Code = known.Code().String()
	} else if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		described.Code = status.FromContextError(err).Code().String()
	} else {
		described.Code = status.Code(err).String()
		described.Message = status.Convert(err).Message()
	}
	// Known by its message, which is how clients know it; the code stays what was sent.
	recognised := rpctypes.Error(err)
	for name, known := range knownErrors {
		if errors.Is(recognised, known) {
			described.Name = name
		}
	}
	return described
}

var knownErrors = map[string]error{
	"ErrEmptyKey":                      rpctypes.ErrEmptyKey,
	"ErrKeyNotFound":                   rpctypes.ErrKeyNotFound,
	"ErrValueProvided":                 rpctypes.ErrValueProvided,
	"ErrLeaseProvided":                 rpctypes.ErrLeaseProvided,
	"ErrTooManyOps":                    rpctypes.ErrTooManyOps,
	"ErrDuplicateKey":                  rpctypes.ErrDuplicateKey,
	"ErrInvalidSortOption":             rpctypes.ErrInvalidSortOption,
	"ErrCompacted":                     rpctypes.ErrCompacted,
	"ErrFutureRev":                     rpctypes.ErrFutureRev,
	"ErrNoSpace":                       rpctypes.ErrNoSpace,
	"ErrLeaseNotFound":                 rpctypes.ErrLeaseNotFound,
	"ErrLeaseExist":                    rpctypes.ErrLeaseExist,
	"ErrLeaseTTLTooLarge":              rpctypes.ErrLeaseTTLTooLarge,
	"ErrMemberExist":                   rpctypes.ErrMemberExist,
	"ErrPeerURLExist":                  rpctypes.ErrPeerURLExist,
	"ErrMemberNotEnoughStarted":        rpctypes.ErrMemberNotEnoughStarted,
	"ErrMemberBadURLs":                 rpctypes.ErrMemberBadURLs,
	"ErrMemberNotFound":                rpctypes.ErrMemberNotFound,
	"ErrMemberNotLearner":              rpctypes.ErrMemberNotLearner,
	"ErrMemberLearnerNotReady":         rpctypes.ErrMemberLearnerNotReady,
	"ErrTooManyLearners":               rpctypes.ErrTooManyLearners,
	"ErrRequestTooLarge":               rpctypes.ErrRequestTooLarge,
	"ErrTooManyRequests":               rpctypes.ErrTooManyRequests,
	"ErrRootUserNotExist":              rpctypes.ErrRootUserNotExist,
	"ErrRootRoleNotExist":              rpctypes.ErrRootRoleNotExist,
	"ErrUserAlreadyExist":              rpctypes.ErrUserAlreadyExist,
	"ErrUserEmpty":                     rpctypes.ErrUserEmpty,
	"ErrUserNotFound":                  rpctypes.ErrUserNotFound,
	"ErrRoleAlreadyExist":              rpctypes.ErrRoleAlreadyExist,
	"ErrRoleNotFound":                  rpctypes.ErrRoleNotFound,
	"ErrRoleEmpty":                     rpctypes.ErrRoleEmpty,
	"ErrAuthFailed":                    rpctypes.ErrAuthFailed,
	"ErrPermissionDenied":              rpctypes.ErrPermissionDenied,
	"ErrRoleNotGranted":                rpctypes.ErrRoleNotGranted,
	"ErrPermissionNotGranted":          rpctypes.ErrPermissionNotGranted,
	"ErrAuthNotEnabled":                rpctypes.ErrAuthNotEnabled,
	"ErrInvalidAuthToken":              rpctypes.ErrInvalidAuthToken,
	"ErrAuthOldRevision":               rpctypes.ErrAuthOldRevision,
	"ErrInvalidAuthMgmt":               rpctypes.ErrInvalidAuthMgmt,
	"ErrClusterIDMismatch":             rpctypes.ErrClusterIDMismatch,
	"ErrNoLeader":                      rpctypes.ErrNoLeader,
	"ErrNotLeader":                     rpctypes.ErrNotLeader,
	"ErrLeaderChanged":                 rpctypes.ErrLeaderChanged,
	"ErrNotCapable":                    rpctypes.ErrNotCapable,
	"ErrStopped":                       rpctypes.ErrStopped,
	"ErrTimeout":                       rpctypes.ErrTimeout,
	"ErrTimeoutDueToLeaderFail":        rpctypes.ErrTimeoutDueToLeaderFail,
	"ErrTimeoutDueToConnectionLost":    rpctypes.ErrTimeoutDueToConnectionLost,
	"ErrTimeoutWaitAppliedIndex":       rpctypes.ErrTimeoutWaitAppliedIndex,
	"ErrUnhealthy":                     rpctypes.ErrUnhealthy,
	"ErrCorrupt":                       rpctypes.ErrCorrupt,
	"ErrBadLeaderTransferee":           rpctypes.ErrBadLeaderTransferee,
	"ErrClusterVersionUnavailable":     rpctypes.ErrClusterVersionUnavailable,
	"ErrWrongDowngradeVersionFormat":   rpctypes.ErrWrongDowngradeVersionFormat,
	"ErrInvalidDowngradeTargetVersion": rpctypes.ErrInvalidDowngradeTargetVersion,
	"ErrDowngradeInProcess":            rpctypes.ErrDowngradeInProcess,
	"ErrNoInflightDowngrade":           rpctypes.ErrNoInflightDowngrade,
}
