// Drives the RPC API of a node with kubo-rpc-client, by every command that the two
// share, and prints the names of those that did what Kubo's do, as a JSON list. The
// first that does not ends the program with an error that says which.
//
//	node rpc.js <URL of the API> <multiaddr of a peer> <CID of a file that the peer has> <its SHA-256>

import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { create } from 'kubo-rpc-client'
import { CID } from 'multiformats/cid'

const [url, peer, root, sum] = process.argv.slice(2)
const theirs = peer.split('/p2p/')[1]
const ipfs = create({ url, timeout: 30_000 })
const done = []

async function step (name, f) {
  try {
    await f()
  } catch (err) {
    err.message = `${name}: ${err.message}`
    throw err
  }
  done.push(name)
}

async function all (source) {
  const list = []
  for await (const v of source) list.push(v)
  return list
}

const read = async (source) => Buffer.concat(await all(source))
const strings = (list) => list.map(v => v.toString()).sort()

const content = randomBytes(3 << 20)
const small = Buffer.from('a file\n')
let file, directory

await step('id', async () => {
  const id = await ipfs.id()
  assert.ok(id.id.toString().length > 10)
  assert.ok(id.addresses.length > 0)
  assert.ok(id.protocols.includes('/codex/blockexc/1.0.0'))
})
await step('version', async () => assert.ok((await ipfs.version()).version))
await step('isOnline', async () => assert.equal(await ipfs.isOnline(), true))
await step('add', async () => {
  file = await ipfs.add(content, { cidVersion: 1, rawLeaves: true, chunker: 'size-65536', pin: true })
  assert.equal(file.cid.version, 1)
  const hashed = await ipfs.add(content, { cidVersion: 1, rawLeaves: true, chunker: 'size-65536', onlyHash: true })
  assert.equal(hashed.cid.toString(), file.cid.toString())
  let told = 0
  await ipfs.add(content, { progress: (n) => { told = n } })
  assert.equal(told, content.length)
})
await step('addAll', async () => {
  const added = await all(ipfs.addAll([{ path: 'd/a', content: small }, { path: 'd/sub/b', content }], { cidVersion: 1 }))
  assert.deepEqual(added.map(a => a.path).sort(), ['d', 'd/a', 'd/sub', 'd/sub/b'])
  directory = added.find(a => a.path === 'd').cid
})
await step('cat', async () => {
  assert.ok(content.equals(await read(ipfs.cat(file.cid))))
  assert.ok(content.subarray(1000, 1500).equals(await read(ipfs.cat(file.cid, { offset: 1000, length: 500 }))))
  assert.ok(small.equals(await read(ipfs.cat(`/ipfs/${directory}/a`))))
})
await step('get', async () => assert.ok((await read(ipfs.get(directory))).includes(small)))
await step('ls', async () => {
  const entries = await all(ipfs.ls(directory))
  assert.deepEqual(entries.map(e => [e.name, e.type]), [['a', 'file'], ['sub', 'dir']])
  assert.equal(entries[0].size, small.length)
})
await step('block', async () => {
  const c = await ipfs.block.put(small, { format: 'raw', mhtype: 'sha2-256', version: 1 })
  assert.ok(small.equals(await ipfs.block.get(c)))
  assert.equal((await ipfs.block.stat(c)).size, small.length)
  const own = await ipfs.block.put(randomBytes(100), { format: 'raw' })
  const [removed] = await all(ipfs.block.rm(own))
  assert.equal(removed.cid.toString(), own.toString())
  assert.equal(removed.error, undefined)
})
await step('refs', async () => {
  const refs = await all(ipfs.refs(file.cid, { recursive: true, unique: true }))
  assert.equal(refs.length, content.length / 65536)
  const local = await all(ipfs.refs.local())
  assert.ok(local.length > refs.length)
})
await step('pin', async () => {
  const pinned = async () => strings((await all(ipfs.pin.ls({ type: 'recursive' }))).map(p => p.cid))
  assert.ok((await pinned()).includes(file.cid.toString()))
  assert.equal((await ipfs.pin.rm(file.cid)).toString(), file.cid.toString())
  assert.ok(!(await pinned()).includes(file.cid.toString()))
  assert.equal((await ipfs.pin.add(file.cid)).toString(), file.cid.toString())
  assert.ok((await pinned()).includes(file.cid.toString()))
})
await step('dag', async () => {
  const car = await all(ipfs.dag.export(directory))
  const [imported] = await all(ipfs.dag.import([(async function * () { yield * car })()]))
  assert.equal(imported.root.cid.toString(), directory.toString())
  assert.equal(imported.root.pinErrorMsg, '')
})
await step('swarm', async () => {
  const connected = async () => strings((await ipfs.swarm.peers()).map(p => p.peer))
  await ipfs.swarm.connect(peer)
  assert.deepEqual(await connected(), [theirs])
  assert.ok((await ipfs.swarm.addrs()).some(a => a.id.toString() === theirs))
  assert.ok((await ipfs.swarm.localAddrs()).length > 0)
  await ipfs.swarm.disconnect(peer)
  assert.deepEqual(await connected(), [])
  await ipfs.swarm.connect(peer)
})
await step('cat from a peer', async () => {
  assert.equal(createHash('sha256').update(await read(ipfs.cat(CID.parse(root)))).digest('hex'), sum)
})
await step('repo', async () => {
  const stat = await ipfs.repo.stat()
  assert.ok(stat.numObjects > 0n && stat.repoSize > 0n)
  assert.ok(await ipfs.repo.version())
  const collected = await all(ipfs.repo.gc())
  assert.ok(collected.length > 0)
  assert.ok(collected.every(c => c.cid.toString() !== file.cid.toString() && c.err == null))
  assert.ok(content.equals(await read(ipfs.cat(file.cid))))
})
await step('stats', async () => {
  for await (const bw of ipfs.stats.bw({ poll: true, interval: '1s' })) { // libp2p sums up once a second
    if (bw.totalIn > BigInt(4 << 20)) break
  }
  assert.ok((await ipfs.stats.repo()).numObjects > 0n)
})
await step('config', async () => {
  const whole = await ipfs.config.getAll()
  assert.equal(whole.Identity.PrivKey, undefined)
  assert.deepEqual(await ipfs.config.get('Exchange.Use'), whole.Exchange.Use)
  await ipfs.config.set('Datastore.StorageMax', '11GB')
  assert.equal(await ipfs.config.get('Datastore.StorageMax'), '11GB')
})
await step('log', async () => assert.ok((await ipfs.log.ls()).length > 0))
await step('diag', async () => assert.ok((await ipfs.diag.sys()).runtime != null))
console.log(JSON.stringify(done))
