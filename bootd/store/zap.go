package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"
)

// bridge forwards etcd's warnings and errors to slog. It is a zapcore.Core.
type bridge struct {
	log  *slog.Logger
	min  zapcore.Level
	mute *atomic.Bool // set while etcd is being stopped, which it logs as errors
}

func newBridge(log *slog.Logger, min zapcore.Level) *bridge {
	return &bridge{log: log, min: min, mute: new(atomic.Bool)}
}

func (b *bridge) Enabled(l zapcore.Level) bool { return l >= b.min && !b.mute.Load() }

func (b *bridge) With(fields []zapcore.Field) zapcore.Core {
	return &bridge{log: b.log.With(attrs(fields)...), min: b.min, mute: b.mute}
}

func (b *bridge) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if !b.Enabled(e.Level) || expected(e.Message) {
		return ce
	}
	return ce.AddCore(e, b)
}

// expected are warnings that an etcd configured like bootd's always logs: one member without peers or users,
// serving gRPC on a socket.
func expected(message string) bool {
	return strings.HasPrefix(message, "Running http and grpc server on single port") ||
		strings.HasPrefix(message, "serving client traffic insecurely") ||
		strings.HasPrefix(message, "simple token is not cryptographically signed")
}

func (b *bridge) Write(e zapcore.Entry, fields []zapcore.Field) error {
	if e.Level >= zapcore.DPanicLevel {
		return nil // said by fatal, in words
	}
	level := slog.LevelWarn
	if e.Level >= zapcore.ErrorLevel {
		level = slog.LevelError
	}
	b.log.Log(context.Background(), level, e.Message, attrs(fields)...)
	return nil
}

func (b *bridge) Sync() error { return nil }

func attrs(fields []zapcore.Field) []any {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(enc)
	}
	list := make([]any, 0, 2*len(fields))
	for _, f := range fields {
		if v, ok := enc.Fields[f.Key]; ok {
			list = append(list, f.Key, v)
		}
	}
	return list
}

// fatal handles etcd's log.Fatal and log.Panic, which would end the process with a stack dump: as an error from
// Open while etcd starts, and after that with one readable last message. It is a zapcore.CheckWriteHook.
type fatal struct {
	conf  Config
	log   *slog.Logger
	early chan error
	once  sync.Once
	up    chan struct{} // closed when etcd has started
}

func newFatal(conf Config, log *slog.Logger) *fatal {
	return &fatal{conf: conf, log: log, early: make(chan error, 1), up: make(chan struct{})}
}

// running ends the period in which Open can still return an error.
func (f *fatal) running() { close(f.up) }

// OnWrite implements zapcore.CheckWriteHook. It does not return: etcd's code does not expect that, and a
// goroutine of etcd's must not continue.
func (f *fatal) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) {
	err := f.words(e.Message, fields)
	select {
	case <-f.up:
		f.once.Do(func() { f.die(err) })
		select {} // another goroutine is ending the process
	default:
		select {
		case f.early <- err:
		default:
		}
		runtime.Goexit()
	}
}

func (f *fatal) die(err error) {
	if f.conf.OnFatal != nil {
		f.conf.OnFatal(err)
		return
	}
	f.log.Error("etcd cannot continue; acknowledged writes are safe", "error", err)
	os.Exit(1)
}

func (f *fatal) words(message string, fields []zapcore.Field) error {
	var cause error
	for _, field := range fields {
		if err, ok := field.Interface.(error); ok {
			cause = err
		}
	}
	switch {
	case errors.Is(cause, unix.ENOSPC) || errors.Is(cause, unix.EDQUOT):
		return fmt.Errorf("%w: the file system of %s is full (%s): free some of it and start bootd again", ErrNoSpace, f.conf.Dir, message)
	case errors.Is(cause, unix.EROFS):
		return fmt.Errorf("the file system of %s is read-only (%s): see the kernel's log for why, then mount it writable and start bootd again: %w", f.conf.Dir, message, cause)
	case errors.Is(cause, unix.EIO):
		return fmt.Errorf("the disk of %s fails (%s): replace it and restore a backup: %w", f.conf.Dir, message, cause)
	case cause != nil:
		return fmt.Errorf("%s: %w", message, cause)
	}
	return errors.New(message)
}
