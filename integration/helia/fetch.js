// Fetches a UnixFS file with Helia from one peer, by Bitswap over TCP, Noise and
// yamux, and prints what came as JSON: {"bytes":…,"sha256":"…"}.
//
//	node fetch.js <multiaddr with /p2p/> <CID>
//
// Nothing but the peer is asked: no routing, no HTTP gateways.

import { createHash } from 'node:crypto'
import { withBitswap } from '@helia/bitswap'
import { withLibp2pLight } from '@helia/libp2p'
import { unixfs } from '@helia/unixfs'
import { identify } from '@libp2p/identify'
import { noise } from '@libp2p/noise'
import { tcp } from '@libp2p/tcp'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import { createHeliaLight } from 'helia'
import { CID } from 'multiformats/cid'

const [addr, root] = process.argv.slice(2)
const signal = AbortSignal.timeout(60_000)
const helia = await withBitswap(withLibp2pLight(createHeliaLight(), {
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: { identify: identify() }
})).start()
try {
  await helia.libp2p.dial(multiaddr(addr), { signal })
  const hash = createHash('sha256')
  let bytes = 0
  for await (const part of unixfs(helia).cat(CID.parse(root), { signal })) {
    hash.update(part)
    bytes += part.length
  }
  console.log(JSON.stringify({ bytes, sha256: hash.digest('hex') }))
} finally {
  await helia.stop()
}
