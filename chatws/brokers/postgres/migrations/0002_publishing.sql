-- What an application calls within its own transactions. docs/operations.md ("PostgreSQL") says how.
-- Programs that know migration 1 or a later one can work with it.

CREATE TABLE chatws.audiences (
    event text PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('conversation', 'user', 'everyone', 'none')),
    transient boolean NOT NULL DEFAULT false,
    not_to_actor boolean NOT NULL DEFAULT false
);
COMMENT ON TABLE chatws.audiences IS
    'Who gets an event whose audience is not named. `chatws db upgrade --config` takes [audience] over into it.';

-- docs/protocol.md §2, and what [audience] in the configuration changes of it: an object, kinds by event.
CREATE FUNCTION chatws.set_audiences(p_kinds json) RETURNS void LANGUAGE sql VOLATILE AS $$
    DELETE FROM chatws.audiences;
    INSERT INTO chatws.audiences (event, kind, transient, not_to_actor) VALUES
        ('new_message', 'conversation', false, false),
        ('message_read', 'conversation', false, false),
        ('message_status_updated', 'conversation', false, false),
        ('typing', 'conversation', true, true),
        ('conversation_updated', 'everyone', false, false),
        ('new_conversation', 'everyone', false, false),
        ('agent_status', 'everyone', true, false);
    INSERT INTO chatws.audiences AS a (event, kind) SELECT k.key, k.value FROM json_each_text(p_kinds) k
        ON CONFLICT (event) DO UPDATE SET kind = EXCLUDED.kind;
$$;
SELECT chatws.set_audiences('{}');

-- When a transaction that has published commits, and no node is looking anyway: wake one.
CREATE FUNCTION chatws._wake() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (SELECT awake_until FROM chatws.waking) < clock_timestamp() THEN
        PERFORM pg_notify('chatws', 'outbox');
    END IF;
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER wake AFTER INSERT ON chatws.outbox DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.wakes) EXECUTE FUNCTION chatws._wake();

CREATE FUNCTION chatws._refuse(p_reason text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'chatws: %', p_reason USING ERRCODE = 'invalid_parameter_value';
END
$$;

CREATE FUNCTION chatws._is_integer(p_id text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT p_id ~ '^(0|[1-9][0-9]{0,15})$' AND p_id::numeric <= 9007199254740991
$$;

-- An id in its canonical form, as text: 456 and "456" are both 456.
CREATE FUNCTION chatws._id(p_id jsonb, p_field text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    v_id text := p_id #>> '{}';
BEGIN
    CASE coalesce(jsonb_typeof(p_id), 'null')
        WHEN 'number' THEN
            IF chatws._is_integer(v_id) THEN
                RETURN v_id;
            END IF;
            PERFORM chatws._refuse(p_field || ' must be an integer from 0 to 2^53-1');
        WHEN 'string' THEN
            IF char_length(v_id) BETWEEN 1 AND 128 THEN
                RETURN v_id;
            END IF;
            PERFORM chatws._refuse(p_field || ' must have 1 to 128 characters');
        ELSE
            PERFORM chatws._refuse(p_field || ' must be an integer or a string');
    END CASE;
END
$$;

CREATE FUNCTION chatws._id_as_json(p_id text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN chatws._is_integer(p_id) THEN p_id ELSE to_json(p_id)::text END
$$;

CREATE FUNCTION chatws._put(
    p_name text, p_channels text[], p_except text, p_data text, p_key text, p_transient boolean
) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    -- one wake-up for a transaction; undone with a savepoint like the row itself
    v_wakes boolean := coalesce(current_setting('chatws.woken', true), '') = '';
BEGIN
    INSERT INTO chatws.outbox (name, channels, except_user_id, data, key, transient, wakes)
    VALUES (p_name, array_to_json(p_channels)::text, chatws._id_as_json(p_except), p_data,
        replace(p_key, '\', '\\'), p_transient, v_wakes);
    IF v_wakes THEN
        PERFORM set_config('chatws.woken', 'yes', true);
    END IF;
END
$$;

-- The channels that an audience stands for (docs/protocol.md §3, `to`).
CREATE FUNCTION chatws._channels(p_to jsonb) RETURNS text[] LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    v_ids jsonb := p_to -> 'user_ids';
BEGIN
    IF p_to = '"everyone"' THEN
        RETURN ARRAY['*'];
    END IF;
    IF jsonb_typeof(p_to) <> 'object' THEN
        PERFORM chatws._refuse('audience must be "everyone" or an object with conversation_id, user_id or user_ids');
    END IF;
    p_to := jsonb_strip_nulls(p_to);
    IF (p_to ? 'conversation_id')::int + (p_to ? 'user_id')::int + (p_to ? 'user_ids')::int <> 1 THEN
        PERFORM chatws._refuse('audience must name one of conversation_id, user_id, user_ids');
    END IF;
    IF p_to ? 'conversation_id' THEN
        RETURN ARRAY['conversation:' || chatws._id(p_to -> 'conversation_id', 'audience.conversation_id')];
    ELSIF p_to ? 'user_id' THEN
        RETURN ARRAY['user:' || chatws._id(p_to -> 'user_id', 'audience.user_id')];
    END IF;
    IF jsonb_typeof(v_ids) <> 'array' OR jsonb_array_length(v_ids) NOT BETWEEN 1 AND 10000 THEN
        PERFORM chatws._refuse('audience.user_ids must be an array of 1 to 10000 ids');
    END IF;
    RETURN ARRAY(SELECT DISTINCT 'user:' || chatws._id(one, 'audience.user_ids') FROM jsonb_array_elements(v_ids) one);
END
$$;

CREATE FUNCTION chatws._publish(
    p_event text, p_data text, p_audience jsonb, p_except text, p_key text, p_transient boolean
) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_rule chatws.audiences;
    v_data json;
    v_channels text[];
    v_actor jsonb;
BEGIN
    IF p_event IS NULL OR p_event !~ '^[A-Za-z0-9_.:-]{1,64}$' THEN
        PERFORM chatws._refuse('event must be 1 to 64 characters of A-Z a-z 0-9 _ . : -');
    END IF;
    IF p_event IN ('authenticated', 'subscribed', 'unsubscribed', 'presence', 'error', 'pong',
                   'connected', 'disconnected', 'reconnect_failed', 'resync', 'recovered') THEN
        PERFORM chatws._refuse(p_event || ' is an event of the server''s own (reserved_event)');
    END IF;
    v_data := p_data;  -- raises where it is no JSON
    IF v_data IS NULL OR json_typeof(v_data) <> 'object' THEN
        PERFORM chatws._refuse('data must be an object');
    END IF;
    IF octet_length(p_data) > 1048576 THEN
        PERFORM chatws._refuse('data is larger than 1 MiB');
    END IF;
    IF char_length(p_key) NOT BETWEEN 1 AND 128 THEN
        PERFORM chatws._refuse('id must have 1 to 128 characters');
    END IF;
    IF p_except IS NOT NULL THEN
        p_except := chatws._id(to_jsonb(p_except), 'except_user_id');
    END IF;
    SELECT * INTO v_rule FROM chatws.audiences a WHERE a.event = p_event;
    IF p_audience IS NOT NULL AND p_audience <> 'null' THEN
        v_channels := chatws._channels(p_audience);
    ELSIF v_rule.kind = 'everyone' THEN
        v_channels := ARRAY['*'];
    ELSIF v_rule.kind IS NULL OR v_rule.kind = 'none' THEN
        PERFORM chatws._refuse(p_event || ' has no default audience: name one (no_audience)');
    ELSE
        v_actor := v_data -> 'user_id';
        IF v_rule.not_to_actor AND p_except IS NULL AND v_actor <> 'null' THEN
            p_except := chatws._id(v_actor, 'data.user_id');
        END IF;
        IF v_rule.kind = 'user' THEN
            v_channels := ARRAY['user:' || chatws._id(v_actor, 'data.user_id')];
        ELSE
            v_channels := ARRAY['conversation:' ||
                chatws._id((v_data -> 'conversation_id')::jsonb, 'data.conversation_id')];
        END IF;
    END IF;
    PERFORM chatws._put(p_event, v_channels, p_except, p_data, p_key,
        coalesce(p_transient, false) OR coalesce(v_rule.transient, false));
END
$$;

-- One for each way to write JSON: text and json go out as they were written, jsonb orders keys its own way.
CREATE FUNCTION chatws.publish(
    event text, data text, audience jsonb DEFAULT NULL, except_user_id text DEFAULT NULL,
    id text DEFAULT NULL, transient boolean DEFAULT false
) RETURNS void LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT chatws._publish($1, $2, $3, $4, $5, $6)
$$;
CREATE FUNCTION chatws.publish(
    event text, data json, audience jsonb DEFAULT NULL, except_user_id text DEFAULT NULL,
    id text DEFAULT NULL, transient boolean DEFAULT false
) RETURNS void LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT chatws._publish($1, $2::text, $3, $4, $5, $6)
$$;
CREATE FUNCTION chatws.publish(
    event text, data jsonb, audience jsonb DEFAULT NULL, except_user_id text DEFAULT NULL,
    id text DEFAULT NULL, transient boolean DEFAULT false
) RETURNS void LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT chatws._publish($1, $2::text, $3, $4, $5, $6)
$$;
COMMENT ON FUNCTION chatws.publish(text, jsonb, jsonb, text, text, boolean) IS
    'Publish an event if this transaction commits. `audience` is the `to` of docs/protocol.md §3.';

-- Orders to the nodes (chatws.chat.cluster_commands).
CREATE FUNCTION chatws._revoke(p_user jsonb, p_conversation jsonb) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_user text := chatws._id(p_user, 'user_id');
    v_conversation text := chatws._id(p_conversation, 'conversation_id');
BEGIN
    PERFORM chatws._put('unsubscribe', ARRAY['#nodes'], NULL,
        '{"user_id":' || chatws._id_as_json(v_user)
        || ',"conversation_id":' || chatws._id_as_json(v_conversation) || '}', NULL, false);
END
$$;
CREATE FUNCTION chatws._disconnect(p_user jsonb, p_reason text, p_ban boolean) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_user text := chatws._id(p_user, 'user_id');
BEGIN
    PERFORM chatws._put('disconnect', ARRAY['#nodes'], NULL,
        '{"user_id":' || chatws._id_as_json(v_user) || ',"reason":' || to_json(coalesce(p_reason, ''))::text
        || ',"ban":' || CASE WHEN p_ban THEN 'true' ELSE 'false' END || '}', NULL, false);
END
$$;

CREATE FUNCTION chatws.revoke(user_id bigint, conversation_id bigint) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT chatws._revoke(to_jsonb($1), to_jsonb($2))
$$;
CREATE FUNCTION chatws.revoke(user_id text, conversation_id text) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT chatws._revoke(to_jsonb($1), to_jsonb($2))
$$;
CREATE FUNCTION chatws.revoke(user_id bigint, conversation_id text) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT chatws._revoke(to_jsonb($1), to_jsonb($2))
$$;
CREATE FUNCTION chatws.revoke(user_id text, conversation_id bigint) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT chatws._revoke(to_jsonb($1), to_jsonb($2))
$$;
COMMENT ON FUNCTION chatws.revoke(bigint, bigint) IS
    'When this transaction commits, take the conversation away from that user''s open connections.';

CREATE FUNCTION chatws.disconnect(user_id bigint, reason text DEFAULT '', ban boolean DEFAULT false) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT chatws._disconnect(to_jsonb($1), $2, $3)
$$;
CREATE FUNCTION chatws.disconnect(user_id text, reason text DEFAULT '', ban boolean DEFAULT false) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT chatws._disconnect(to_jsonb($1), $2, $3)
$$;
COMMENT ON FUNCTION chatws.disconnect(bigint, text, boolean) IS
    'When this transaction commits, close that user''s connections; with `ban` they are told not to come back.';
