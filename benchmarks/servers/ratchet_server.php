<?php
// Ratchet as the inbox applications in the field use it: each connection's subscriptions are looked through for each
// message, in one loop over all connections. Run where RATCHET_VENDOR names a vendor directory with cboden/ratchet.

require getenv('RATCHET_VENDOR') . '/autoload.php';

use Ratchet\ConnectionInterface;
use Ratchet\MessageComponentInterface;

final class Rooms implements MessageComponentInterface
{
    private SplObjectStorage $clients;

    public function __construct()
    {
        $this->clients = new SplObjectStorage();
    }

    public function onOpen(ConnectionInterface $conn)
    {
        $this->clients->attach($conn, []);
    }

    public function onMessage(ConnectionInterface $from, $text)
    {
        $message = json_decode($text, true);
        if (($message['type'] ?? '') === 'subscribe') {
            $mine = $this->clients[$from];
            $mine[$message['conversation_id']] = true;
            $this->clients[$from] = $mine;
        }
    }

    public function onClose(ConnectionInterface $conn)
    {
        $this->clients->detach($conn);
    }

    public function onError(ConnectionInterface $conn, Exception $error)
    {
        $conn->close();
    }

    public function publish(string $line): void
    {
        $room = json_decode($line, true)['data']['conversation_id'];
        foreach ($this->clients as $client) {
            if (isset($this->clients[$client][$room])) {
                $client->send($line);
            }
        }
    }
}

$loop = React\EventLoop\Loop::get();
$rooms = new Rooms();
$socket = new React\Socket\SocketServer('127.0.0.1:' . $argv[1], ['tcp' => ['backlog' => 4096]], $loop);
new Ratchet\Server\IoServer(new Ratchet\Http\HttpServer(new Ratchet\WebSocket\WsServer($rooms)), $socket, $loop);
$push = new React\Socket\SocketServer('127.0.0.1:' . $argv[2], [], $loop);
$push->on('connection', function (React\Socket\ConnectionInterface $backend) use ($rooms) {
    $rest = '';
    $backend->on('data', function (string $data) use (&$rest, $rooms) {
        $lines = explode("\n", $rest . $data);
        $rest = array_pop($lines);
        foreach ($lines as $line) {
            $rooms->publish($line);
        }
    });
});
$loop->run();
