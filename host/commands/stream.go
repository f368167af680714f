package commands

import (
	"context"
	"fmt"
	"io"

	cmds "github.com/ipfs/go-ipfs-cmds"
)

// emitStream emits what write writes, and returns when that has been read, or nobody
// wants it any more. An error of write is told to the reader.
func emitStream(ctx context.Context, re cmds.ResponseEmitter, write func(io.Writer) error) error {
	out, in := io.Pipe()
	stop := context.AfterFunc(ctx, func() { out.CloseWithError(context.Cause(ctx)) })
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		in.CloseWithError(write(in))
	}()
	// Over HTTP this reads all of it. On a command line it only hands it to PostRun,
	// which ends it.
	err := re.Emit(out)
	if err != nil {
		out.Close()
	}
	<-done
	return err
}

// emitted is what a command has emitted by emitStream, for a PostRun to read. Done says
// that it is not read any further.
func emitted(res cmds.Response, op string) (r io.Reader, done func(), err error) {
	v, err := res.Next()
	if err != nil {
		return nil, nil, err
	}
	done = func() {}
	if c, ok := v.(io.Closer); ok {
		done = func() { c.Close() }
	}
	r, ok := v.(io.Reader)
	if !ok {
		done()
		return nil, nil, fmt.Errorf("%s: got %T, want bytes", op, v)
	}
	return r, done, nil
}
