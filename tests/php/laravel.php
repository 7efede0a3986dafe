<?php

/*
 * The Laravel broadcaster without Laravel: the few names it needs of the framework stand here. Argument: the address.
 * Writes what became of each step as JSON.
 */

declare(strict_types=1);

namespace Illuminate\Contracts\Broadcasting {
    interface Broadcaster
    {
        public function auth($request);

        public function validAuthenticationResponse($request, $result);

        public function broadcast(array $channels, $event, array $payload = []);
    }
}

namespace Illuminate\Broadcasting\Broadcasters {
    abstract class Broadcaster implements \Illuminate\Contracts\Broadcasting\Broadcaster
    {
    }
}

namespace Symfony\Component\HttpKernel\Exception {
    class AccessDeniedHttpException extends \RuntimeException
    {
    }
}

namespace {
    require __DIR__ . '/../../php/autoload.php';

    use Chatws\Client;
    use Chatws\Config;
    use Chatws\Laravel\ChatwsBroadcaster;
    use Symfony\Component\HttpKernel\Exception\AccessDeniedHttpException;

    /** What Illuminate\Broadcasting\PrivateChannel is for here. */
    final class Channel
    {
        public function __construct(public string $name)
        {
        }

        public function __toString(): string
        {
            return $this->name;
        }
    }

    final class User
    {
        public function getAuthIdentifier(): int
        {
            return 5;
        }
    }

    final class Request
    {
        public function __construct(private ?User $user)
        {
        }

        public function user(): ?User
        {
            return $this->user;
        }
    }

    $log = [];
    $config = Config::fromEnv([
        'address' => $argv[1],
        'ticket_secret' => 'a secret of at least 32 bytes, this',
        'logger' => static function (string $level, string $message) use (&$log): void {
            $log[] = $message;
        },
    ]);
    $broadcaster = new ChatwsBroadcaster(new Client($config));
    $broadcaster->broadcast(
        [new Channel('private-conversations.456'), 'everyone', new Channel('private-App.Models.User.5'), 'users.6'],
        'App\\Events\\OrderPaid',
        ['order' => 77, 'socket' => null],
    );
    $broadcaster->broadcast(['presence-conversation.c-1'], 'order.shipped', []);
    $broadcaster->broadcast(['orders'], 'order.shipped', []);
    try {
        $broadcaster->auth(new Request(null));
        $refused = false;
    } catch (AccessDeniedHttpException) {
        $refused = true;
    }
    $auth = $broadcaster->auth(new Request(new User()));
    echo json_encode(['log' => $log, 'refused' => $refused, 'auth' => $auth], JSON_THROW_ON_ERROR);
}
