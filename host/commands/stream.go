package commands

import (
	"context"
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
	// which closes it.
	err := re.Emit(out)
	if err != nil {
		out.Close()
	}
	<-done
	return err
}

// closeStream says that what a PostRun was given is not read any further.
func closeStream(v any) {
	if c, ok := v.(io.Closer); ok {
		c.Close()
	}
}
