<?php

/*
 * A test application with Laravel's components of Debian. It loads the providers that composer.json names, as
 * Composer's package discovery does. A directory has its files:
 *
 *     channels.php        routes/channels.php
 *     .env                read by Dotenv, as Laravel does
 *
 * Reads JSON lines, each an object with one of these keys, and writes one JSON line for each:
 *
 *     {"auth": {"channel_name": …}, "headers": {"User": 5}}  POST /broadcasting/auth through the router
 *     {"event": "OrderPaid", "channels": […], "order": 77}   an event of that class, as a queue worker broadcasts it
 *
 * A step `event` may name `from`, the X-Socket-ID of a request whose event is broadcast with toOthers().
 */

declare(strict_types=1);

namespace {
    foreach (['Auth', 'Broadcasting', 'Config', 'Database', 'Events', 'Http', 'Log', 'Routing'] as $component) {
        require_once "Illuminate/{$component}/autoload.php";
    }
    require_once 'Dotenv/autoload.php';
    require __DIR__ . '/../../php/autoload.php';
}

namespace App\Events {
    use Illuminate\Broadcasting\InteractsWithSockets;
    use Illuminate\Contracts\Broadcasting\ShouldBroadcast;

    final class OrderPaid implements ShouldBroadcast
    {
        use InteractsWithSockets;

        /** @param list<mixed> $on */
        public function __construct(public int $order, private array $on)
        {
        }

        public function broadcastOn(): array
        {
            return $this->on;
        }
    }

    final class OrderShipped implements ShouldBroadcast
    {
        /** @param list<mixed> $on */
        public function __construct(private int $order, private array $on)
        {
        }

        public function broadcastOn(): array
        {
            return $this->on;
        }

        public function broadcastAs(): string
        {
            return 'order.shipped';
        }

        public function broadcastWith(): array
        {
            return ['number' => (string) $this->order];
        }
    }
}

namespace App\Models {
    use Illuminate\Auth\Authenticatable;
    use Illuminate\Contracts\Auth\Authenticatable as AuthenticatableContract;
    use Illuminate\Database\Eloquent\Model;

    class User extends Model implements AuthenticatableContract
    {
        use Authenticatable;
    }

    class Customer extends Model implements AuthenticatableContract
    {
        use Authenticatable;
    }

    class Conversation extends Model
    {
    }
}

namespace {
    use App\Models\Customer;
    use App\Models\User;
    use Illuminate\Auth\AuthManager;
    use Illuminate\Broadcasting\BroadcastEvent;
    use Illuminate\Broadcasting\BroadcastException;
    use Illuminate\Broadcasting\BroadcastManager;
    use Illuminate\Broadcasting\Channel;
    use Illuminate\Broadcasting\PresenceChannel;
    use Illuminate\Broadcasting\PrivateChannel;
    use Illuminate\Config\Repository;
    use Illuminate\Container\Container;
    use Illuminate\Contracts\Broadcasting\Factory as BroadcastingFactory;
    use Illuminate\Contracts\Routing\BindingRegistrar;
    use Illuminate\Contracts\Routing\Registrar;
    use Illuminate\Database\Capsule\Manager as Database;
    use Illuminate\Events\Dispatcher;
    use Illuminate\Http\Request;
    use Illuminate\Log\LogManager;
    use Illuminate\Routing\Middleware\SubstituteBindings;
    use Illuminate\Routing\Router;
    use Illuminate\Support\Env;
    use Illuminate\Support\Facades\Broadcast;
    use Illuminate\Support\Facades\Facade;
    use Symfony\Component\HttpKernel\Exception\HttpExceptionInterface;

    $directory = $argv[1];

    /** Part of the framework package, which Debian does not have. */
    function storage_path(string $path): string
    {
        return $GLOBALS['directory'] . "/storage/{$path}";
    }

    // The methods of the framework package (illuminate/foundation) that the components call.
    $app = new class extends Container {
        public function environment(): string
        {
            return 'production';
        }

        public function runningUnitTests(): bool
        {
            return false;
        }
    };
    Container::setInstance($app);
    Facade::setFacadeApplication($app);
    Dotenv\Dotenv::create(Env::getRepository(), $directory)->load();

    $app->instance('config', new Repository([
        'auth' => [
            'defaults' => ['guard' => 'web'],
            'guards' => ['web' => ['driver' => 'header'], 'customer' => ['driver' => 'customer-header']],
        ],
        'broadcasting' => ['default' => env('BROADCAST_CONNECTION', 'chatws'), 'connections' => ['log' => ['driver' => 'log']]],
        'logging' => [
            'default' => 'single',
            'channels' => ['single' => ['driver' => 'single', 'path' => "{$directory}/laravel.log"]],
        ],
    ]));
    $app->singleton('events', fn ($app) => new Dispatcher($app));
    $app->singleton('log', fn ($app) => new LogManager($app));
    $app->singleton('auth', fn ($app) => new AuthManager($app));
    $app->singleton('router', fn ($app) => new Router($app['events'], $app));
    $app->alias('request', Request::class);
    $app->alias('router', BindingRegistrar::class);
    $app->alias('router', Registrar::class);
    $app->singleton(BroadcastingFactory::class, fn ($app) => new BroadcastManager($app));

    $database = new Database();
    $database->addConnection(['driver' => 'sqlite', 'database' => ':memory:']);
    $database->setAsGlobal();
    $database->bootEloquent();
    foreach (['users', 'customers'] as $table) {
        Database::schema()->create($table, fn ($table) => $table->increments('id'));
        Database::table($table)->insert(array_map(fn (int $id): array => ['id' => $id], [5, 6]));
    }
    Database::schema()->create('conversations', function ($table): void {
        $table->increments('id');
        $table->integer('user_id');
    });
    foreach ([456 => 5, 457 => 5, 458 => 6] as $id => $owner) {
        Database::table('conversations')->insert(['id' => $id, 'user_id' => $owner]);
    }
    $app['auth']->viaRequest('header', fn (Request $request) => User::find($request->header('User')));
    $app['auth']->viaRequest('customer-header', fn (Request $request) => Customer::find($request->header('Customer')));

    $package = json_decode(file_get_contents(__DIR__ . '/../../php/composer.json'), true);
    foreach ($package['extra']['laravel']['providers'] as $class) {
        $provider = new $class($app);
        $provider->register();
        $provider->boot();
    }
    require "{$directory}/channels.php";
    $app['router']->middlewareGroup('web', [SubstituteBindings::class]);
    Broadcast::routes();

    /** @return array{status: int, body: mixed} */
    function authenticate(array $step): array
    {
        global $app;
        $request = Request::create('/broadcasting/auth', 'POST', $step['auth']);
        $request->headers->add($step['headers'] ?? []);
        $request->setUserResolver(fn (?string $guard = null) => $app['auth']->guard($guard)->user());
        $app->instance('request', $request);
        $app['auth']->forgetGuards();
        try {
            $response = $app['router']->dispatch($request);

            return ['status' => $response->getStatusCode(), 'body' => json_decode($response->getContent(), true)];
        } catch (HttpExceptionInterface $error) {
            return ['status' => $error->getStatusCode(), 'body' => null];
        } catch (Throwable $error) {
            return ['status' => 500, 'body' => $error->getMessage()];
        }
    }

    function broadcastEvent(array $step): bool|string
    {
        $channels = array_map(fn (array $channel): Channel => new $channel[0]($channel[1]), $step['channels']);
        $class = "App\\Events\\{$step['event']}";
        $event = new $class($step['order'], $channels);
        if (isset($step['from'])) {
            $request = Request::create('/orders', 'POST');
            $request->headers->set('X-Socket-ID', $step['from']);
            Container::getInstance()->instance('request', $request);
            $event->dontBroadcastToCurrentUser(); // what toOthers() calls
        }
        try {
            (new BroadcastEvent($event))->handle(Container::getInstance()->make(BroadcastingFactory::class));
        } catch (BroadcastException $error) {
            return $error->getMessage();
        }

        return true;
    }

    class_alias(Channel::class, 'PublicChannel');
    class_alias(PresenceChannel::class, 'PresenceChannel');
    class_alias(PrivateChannel::class, 'PrivateChannel');
    while (($line = fgets(STDIN)) !== false) {
        $step = json_decode($line, true, flags: JSON_THROW_ON_ERROR);
        $result = isset($step['auth']) ? authenticate($step) : broadcastEvent($step);
        echo json_encode($result, JSON_THROW_ON_ERROR), "\n";
    }
}
