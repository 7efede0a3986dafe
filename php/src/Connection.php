<?php

declare(strict_types=1);

namespace Chatws;

/**
 * One connection to the push port: lines out, one answer line in for each, in the same order. Nothing here waits
 * longer than it is told, except for the system's resolver when the address is a host name.
 *
 * @internal
 */
final class Connection
{
    private const CHUNK = 65536;
    /** A longer answer is none of ours. */
    private const MAX_ANSWER = 16 * 1024 * 1024;

    /** @var resource|null */
    private $stream = null;
    /** Whose connection it is: a forked child must not talk on its parent's. */
    private int $process = 0;
    private string $buffer = '';
    /** The address that was talked to last. */
    private string $address = '';

    public function __construct(private readonly Config $config, private readonly Addresses $addresses)
    {
    }

    public function __destruct()
    {
        $this->close();
    }

    /**
     * Sends the lines in one go, and reads the answers.
     *
     * @param list<Line> $lines
     * @param float $patience milliseconds of silence at most, where the settings allow for more
     * @return array{array<int, array<string, mixed>>, ConnectionFailed|null} the answers by the position of their
     *     line; and why there are not as many as lines
     */
    public function exchange(array $lines, Deadline $deadline, float $patience = \INF): array
    {
        $answers = [];
        try {
            Quiet::call(function () use ($lines, $deadline, $patience, &$answers): void {
                $skip = 0;
                if ($this->open($deadline->orIn(min($patience, $this->config->connectTimeoutMs))) && $this->config->secret !== null) {
                    array_unshift($lines, Line::operation('auth', ['secret' => $this->config->secret]));
                    $skip = 1;
                }
                $patience = min($patience, $this->config->answerTimeoutMs);
                $this->talk($lines, $skip, $deadline, $patience, $answers);
            });
        } catch (ConnectionFailed $failure) {
            $this->close();

            return [$answers, $this->addresses->areSeveral() ? $failure->at($this->address) : $failure];
        } catch (\Throwable $error) {
            $this->close();

            return [$answers, new ConnectionFailed($error->getMessage(), false, false)];
        }

        return [$answers, null];
    }

    /** What was asked last was done: this address is taken next time, too. */
    public function stay(): void
    {
        $this->addresses->worked($this->address);
    }

    /** It was not: the next exchange is with another address, where there are several. */
    public function leave(): void
    {
        $this->close();
        $this->addresses->failed($this->address);
    }

    /** Closes it; the next exchange opens another. */
    public function close(): void
    {
        $stream = $this->stream;
        $this->stream = null;
        $this->buffer = '';
        if (\is_resource($stream)) {
            Quiet::call(static fn (): bool => fclose($stream));
        }
    }

    /**
     * @param list<Line> $lines
     * @param int $skip so many answers at the beginning are to lines of our own
     * @param float $silence milliseconds that may pass without any progress
     * @param array<int, array<string, mixed>> $answers
     * @throws ConnectionFailed
     */
    private function talk(array $lines, int $skip, Deadline $deadline, float $silence, array &$answers): void
    {
        $out = implode('', array_map(static fn (Line $line): string => "{$line->json}\n", $lines));
        $sent = 0;
        $size = \strlen($out);
        $count = \count($lines);
        $next = 0;
        $patience = $deadline->orIn($silence);
        while ($next < $count) {
            [$readable, $writable] = $this->wait($sent < $size, $patience);
            $progress = false;
            if ($writable) {
                // Before reading: what the server said before it closed can still be read after this has failed.
                $written = fwrite($this->stream, substr($out, $sent, self::CHUNK));
                if ($written === false) {
                    $sent = $size;
                    $readable = true;
                } else {
                    $sent += $written;
                    $progress = $written > 0;
                }
            }
            if ($readable) {
                $came = $this->read();
                foreach ($this->takeLines() as $text) {
                    $answer = $this->parse($text, $lines[$next]->id ?? null);
                    if ($next >= $skip) {
                        $answers[$next - $skip] = $answer;
                    }
                    ++$next;
                    $progress = true;
                }
                if (!$came && $next < $count) {
                    throw new ConnectionFailed('the server closed the connection', true);
                }
            }
            if ($progress) {
                $patience = $deadline->orIn($silence);
            }
        }
    }

    /**
     * @param string|null $id of the line that is to be answered next; null: there is none
     * @return array<string, mixed>
     * @throws ConnectionFailed
     */
    private function parse(string $text, ?string $id): array
    {
        $answer = json_decode($text, true);
        if (!\is_array($answer) || !\is_bool($answer['ok'] ?? null)) {
            throw new ConnectionFailed('what listens there is no push port of chatws', false);
        }
        if (($answer['code'] ?? null) === 'bad_secret') {
            throw new ConnectionFailed('the push secret is wrong, or missing', false, false);
        }
        // A refusal may come without the id, where the line was too bad for one to be found.
        $echo = $answer['id'] ?? ($answer['ok'] ? null : $id);
        if ($id === null || ($echo !== $id && !(\is_int($echo) && (string) $echo === $id))) {
            throw new ConnectionFailed('the server answered what was not asked', false);
        }

        return $answer;
    }

    /**
     * @return array{bool, bool} whether something can be read, and written
     * @throws ConnectionFailed
     */
    private function wait(bool $toWrite, Deadline $patience): array
    {
        do {
            $left = $patience->left();
            $read = [$this->stream];
            $write = $toWrite ? [$this->stream] : [];
            $except = null;
            // False is a signal that came in between: a worker may handle some.
            $found = stream_select($read, $write, $except, (int) ($left / 1000), (int) (fmod($left, 1000) * 1000));
            if ($found) {
                return [$read !== [], $write !== []];
            }
        } while ($left > 0);
        throw new ConnectionFailed('no answer in time', false);
    }

    /** Reads what is there. False at the end of input. */
    private function read(): bool
    {
        do {
            $chunk = fread($this->stream, self::CHUNK);
            if ($chunk === false || $chunk === '') {
                return !feof($this->stream);
            }
            $this->buffer .= $chunk;
        } while (\strlen($this->buffer) < self::MAX_ANSWER);
        throw new ConnectionFailed('an answer without an end', false);
    }

    /** @return list<string> */
    private function takeLines(): array
    {
        $end = strrpos($this->buffer, "\n");
        if ($end === false) {
            return [];
        }
        $lines = explode("\n", substr($this->buffer, 0, $end));
        $this->buffer = substr($this->buffer, $end + 1);

        return $lines;
    }

    /**
     * Sees to it that there is a connection. True when it is a new one.
     *
     * @param Deadline $deadline for connecting
     * @throws ConnectionFailed
     */
    private function open(Deadline $deadline): bool
    {
        if ($this->stream !== null) {
            // It may have been idle for days. Between two exchanges nothing comes but the server's goodbye.
            if ($this->process === getmypid() && $this->read() && $this->buffer === '') {
                return false;
            }
            $this->close();
        }
        foreach ($this->addresses->all as $address) {
            $this->target($address); // one that is none is told at once, and not when it is needed
        }
        $this->address = $this->addresses->current();
        [$target, $tlsName] = $this->target($this->address);
        $context = stream_context_create(['socket' => ['tcp_nodelay' => true], 'ssl' => $this->tls($tlsName)]);
        $number = 0;
        $reason = '';
        $seconds = max(0.001, $deadline->left() / 1000);
        $stream = stream_socket_client($target, $number, $reason, $seconds, \STREAM_CLIENT_CONNECT, $context);
        if ($stream === false) {
            $reason = ($reason ?: Quiet::$warning) . " ({$this->address})";
            throw new ConnectionFailed($reason, $deadline->left() > 0);
        }
        stream_set_blocking($stream, false);
        $this->stream = $stream;
        $this->process = (int) getmypid();
        $this->buffer = '';
        if ($tlsName !== null) {
            $this->encrypt($deadline);
        }

        return true;
    }

    /** @throws ConnectionFailed */
    private function encrypt(Deadline $deadline): void
    {
        while (true) {
            $done = stream_socket_enable_crypto($this->stream, true, \STREAM_CRYPTO_METHOD_TLS_CLIENT);
            if ($done === true) {
                return;
            }
            if ($done === false) {
                throw new ConnectionFailed('TLS: ' . (Quiet::$warning ?: 'the server closed the connection'), false);
            }
            $this->wait(false, $deadline);
        }
    }

    /**
     * @return array{string, string|null} for stream_socket_client(), and the name for TLS
     * @throws ConnectionFailed
     */
    private function target(string $address): array
    {
        if (preg_match('~^unix:(?://)?(/.+)$~', $address, $match)) {
            return ["unix://{$match[1]}", null];
        }
        if (preg_match('~^(?:(tcp|tls)://)?(\[[0-9A-Fa-f:.]+\]|[^:/\[\]]+):(\d{1,5})$~', $address, $match)) {
            $tlsName = $match[1] === 'tls' ? $this->config->tlsName ?? trim($match[2], '[]') : null;

            return ["tcp://{$match[2]}:{$match[3]}", $tlsName];
        }
        throw new ConnectionFailed("\"{$address}\" is no address such as 127.0.0.1:8081 or unix:/path", false, false);
    }

    /** @return array<string, mixed> */
    private function tls(?string $name): array
    {
        $options = ['verify_peer' => true, 'verify_peer_name' => true, 'SNI_enabled' => true];
        if ($name !== null) {
            $options['peer_name'] = $name;
        }
        if ($this->config->tlsCa !== null) {
            $options['cafile'] = $this->config->tlsCa;
        }

        return $options;
    }
}
