<?php
// Ratchet as existing inbox applications use it: for each message one loop over all connections, which searches the
// subscriptions of each. They are in a property of the connection (docs/migrating-from-ratchet.md) or, with a third
// argument, "storage", in the SplObjectStorage, which avoids the __get of Ratchet's decorators.
// RATCHET_VENDOR names a vendor directory with cboden/ratchet.

require getenv('RATCHET_VENDOR') . '/autoload.php';

use Ratchet\ConnectionInterface;
use Ratchet\MessageComponentInterface;

abstract class Rooms implements MessageComponentInterface
{
    protected SplObjectStorage $clients;

    public function __construct()
    {
        $this->clients = new SplObjectStorage();
    }

    public function onMessage(ConnectionInterface $from, $text)
    {
        $message = json_decode($text, true);
        if (($message['type'] ?? '') === 'subscribe') {
            $this->subscribe($from, $message['conversation_id']);
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

    abstract protected function subscribe(ConnectionInterface $conn, int $room): void;

    abstract public function publish(string $line): void;
}

final class RoomsInProperties extends Rooms
{
    public function onOpen(ConnectionInterface $conn)
    {
        $conn->rooms = [];
        $this->clients->attach($conn);
    }

    protected function subscribe(ConnectionInterface $conn, int $room): void
    {
        $conn->rooms = [...$conn->rooms, $room];
    }

    public function publish(string $line): void
    {
        $room = json_decode($line, true)['data']['conversation_id'];
        foreach ($this->clients as $client) {
            if (in_array($room, $client->rooms)) {
                $client->send($line);
            }
        }
    }
}

final class RoomsInStorage extends Rooms
{
    public function onOpen(ConnectionInterface $conn)
    {
        $this->clients->attach($conn, []);
    }

    protected function subscribe(ConnectionInterface $conn, int $room): void
    {
        $mine = $this->clients[$conn];
        $mine[$room] = true;
        $this->clients[$conn] = $mine;
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
$rooms = ($argv[3] ?? '') === 'storage' ? new RoomsInStorage() : new RoomsInProperties();
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
